"""How an examination is shown: for people, programs, code hosts and browsers."""
