"""Methods and their settings as a reader writes them, from the strings that name them in a run."""

import re

METHODS = {
    "beams": "beam search",
    "vhr": "VHR",
    "vasparse": "VASparse",
    "vcd": "VCD",
    "icd": "ICD",
    "avisc": "AvisC",
    "m3id": "M3ID",
    "pai": "PAI",
    "dola": "DoLa",
    "deco": "DeCo",
    "spin": "SPIN",
    "opera": "OPERA",
    "top-k": "top-k keys",
    "fastv": "FastV",
    "streaming-llm": "StreamingLLM",
    "h2o": "H2O",
    "snapkv": "SnapKV",
    "random-heads": "random heads",
    "bottom-heads": "bottom heads",
    "all-heads": "all heads of the layers",
    "stop-bias": "greedy, stopping biased",
}
RANKINGS = {"vhd": "VHD", "image_mass": "attention to the image", "causal": "causal effect"}
OPERATIONS = {"zero": "silenced", "scale": "scaled", "mean": "set to their mean", "resample": "resampled"}
AXES = {
    "keep": "share of the keys kept (%)",
    "share": "share of the heads edited (%)",
    "alpha": "strength alpha",
    "lambda_": "weight lambda",
}


def settings_of(name: str) -> dict[str, str]:
    """`method` and the settings of a method's string, `vhr:alpha=2`, in their order."""
    method, *settings = name.split(":")
    return {"method": method} | {key: value for key, _, value in (s.partition("=") for s in settings)}


def setting(key: str, value: str) -> str:
    """One setting as words."""
    if key == "op":
        return OPERATIONS.get(value, value)
    return f"{key.replace('_', ' ').strip()} {value}".strip()


def readable(settings: dict[str, str] | str) -> str:
    """A method with its settings in words: `edit:heads=top:by=vhd:op=zero` is "top heads by VHD, silenced".

    So is `zero top by vhd`, as an ablation names its edit.
    """
    edit = re.fullmatch(r"(\w+) (\S+) by (\w+)", settings) if isinstance(settings, str) else None
    if edit:
        settings = dict(zip(("method", "heads", "by", "op"), ("edit", edit[2], edit[3], edit[1]), strict=True))
    own = dict(settings_of(settings) if isinstance(settings, str) else settings)
    method = own.pop("method")
    words = METHODS.get(method, method)
    if method == "edit" and "heads" in own:
        words = f"{own.pop('heads')} heads"
        if "by" in own:
            by = own.pop("by")
            words += f" by {RANKINGS.get(by, by)}"
    return ", ".join([words, *(setting(k, v) for k, v in own.items())])
