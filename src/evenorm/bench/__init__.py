"""The benchmark: speed, memory and error of every layer against its peers. Needs the extra ``evenorm[bench]``."""
