# mypy: ignore-errors
"""Models as an author would write them, without annotations, in a folder of their own."""

# SECRETS of the author, none of which may be found in what is exported: this comment, paths, names of functions
import torch
from torch import nn


class Mlp(nn.Module):
    """The docstring of the author."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)  # a comment of the author


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dense = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(64, 10)
        self.norm.running_mean.uniform_(-1, 1)

    def forward(self, image):
        hidden = torch.relu(self.norm(self.conv(image)))
        return self.dense(nn.functional.max_pool2d(hidden, 2).flatten(1))


class Transformer(nn.Module):
    """Tokens in, a class a token and one for all out; the length is free."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.drop, self.head = nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 5)

    def forward(self, tokens, mask):
        hidden = self.embedding(tokens) * mask[:, :, None]
        scores = self.query(hidden) @ self.key(hidden).transpose(1, 2) / 8**0.5
        hidden = self.norm(hidden + self.drop(scores.softmax(-1) @ self.value(hidden)))
        return {"each": self.head(hidden), "all": self.head(hidden.mean(1))}


class Masked(nn.Module):
    """Attention that may find nothing to look at, its rows of zeros among its answers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 8)

    def forward(self, tokens, mask):
        hidden = self.embedding(tokens).unflatten(2, (2, 4)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, attn_mask=mask[:, None, None, :])


class Recurrent(nn.Module):
    """Layers that go through a sequence of any length, both ways."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True, dropout=0.5)
        self.gru = nn.GRU(12, 5, batch_first=True)

    def forward(self, x):
        every, last = self.gru(self.lstm(x)[0])
        return every, last[-1]


class Two(nn.Module):
    def forward(self, left, right):
        return left * 2 - right, (left * right).sum(1)


class Branch(nn.Module):
    """A branch on the batch size that no example of more than one sample takes."""

    def forward(self, x):
        return x * 2 if x.shape[0] == 1 else x * 3


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(3, 4) * 2


class Nan(nn.Module):
    def forward(self, x):
        return x * float("nan")


class Dead(nn.Module):
    def forward(self, x):
        return torch.relu(x * 0 - 1) + 5


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class Passing(nn.Module):
    """What comes in goes out, twice, once as one row."""

    def forward(self, x):
        return x, x, (x * 2).flatten()


class Brain(nn.Module):
    """bfloat16 comes out."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def forward(self, x):
        return self.dense(x).bfloat16()


class Counting(nn.Module):
    """Counts how often it was called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * 2


class Rare(nn.Module):
    """Uses what ONNX has no operator for."""

    def forward(self, x):
        return torch.special.i0(x)


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Raising(nn.Module):
    def forward(self, x):
        raise KeyError("nothing works here")


class Listing(nn.Module):
    def forward(self, x):
        return x, "a text"


class Shown(Mlp):
    example_inputs = (torch.zeros(2, 4),)


def seeded(kind):
    torch.manual_seed(7)
    return kind()


def mlp():
    return seeded(Mlp)


def convolutional():
    return seeded(Convolutional)


def transformer():
    return seeded(Transformer)


def raises():
    return [][3]


def number():
    return 3


constant = 5
