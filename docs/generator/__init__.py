"""Makes the pages of the site that nobody writes by hand; `hook.py` hands them to mkdocs."""
