"""The lab: claims about normalization, measured. Needs the extra ``evenorm[lab]``."""
