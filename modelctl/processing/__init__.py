"""What belongs before a model and after it, as its manifest declares it (`modelctl/chains`), carried out.

`before` makes tensors of raw instances: pictures, rows, texts; `after` makes answers of the model's outputs; `fitting`
says whether what is declared fits a graph. Whatever comes from outside is hostile: a wrong instance is a DataError of
one line, and nothing is allocated by what it merely claims.
"""
