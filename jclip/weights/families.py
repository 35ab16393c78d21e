"""Names what is close to a CLIP of OpenAI's kind, but is computed in another way: SigLIP, EVA, CoCa, …"""

from __future__ import annotations

import re

from .. import bounded

COMPUTED = "jclip computes CLIP as OpenAI built it: its own towers, causal texts, QuickGELU or plain GELU"
TENSORS = [  # a pattern of tensor names -> the family
    (r"(?:.+\.)?text_decoder\..+", "a CoCa"),
    (r"visual\.attn_pool\..+", "a CoCa, or another CLIP with attentional pooling"),
    (r"visual\.trunk\..+", "an image tower of timm, as SigLIP, EVA and MobileCLIP have"),
    (r"visual\.blocks\..+", "an EVA-CLIP"),
    (r"vision_model\.head\..+", "a SigLIP"),
    (r"text\.transformer\.(?:embeddings|encoder|shared|layer)\..+", "a text tower of Hugging Face"),
    (r"text_model\.(?:embeddings\.word_embeddings|bert|roberta|encoder\.layer)\b.*", "a text tower other than CLIP's"),
    (r".+\.ls_[12]\.gamma", "a transformer with layer scale"),
]
# Settings of open_clip's towers with the only value that is computed, besides false and null.
ONLY = {
    "vision_cfg": {"pool_type": "tok", "block_type": "default"},
    "text_cfg": {"pool_type": "argmax", "block_type": "default", "proj_type": "linear"},
}
# Settings that change what is computed wherever they are on.
OFF = {
    "vision_cfg": ("attentional_pool", "no_ln_pre", "final_ln_after_pool"),
    "text_cfg": ("no_causal_mask", "embed_cls", "proj_bias", "hf_tokenizer_name", "tokenizer_kwargs"),
}
OFF_IN_BOTH = (
    "ls_init_value",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "act_kwargs",
    "norm_kwargs",
)
MAX_VOCABULARY = 2 * 49408  # token ids: OpenAI's tokenizer has 49408, and fine-tuning may add some
EPSILON = 1e-5  # of all layer norms
HIDDEN_ACTS = {"quick_gelu": "quickgelu", "gelu": "gelu"}  # Hugging Face's names -> those of jclip/settings.py


def family(names) -> str | None:
    """Return the family of a model that jclip does not compute, from the names of its tensors, or None."""
    for pattern, what in TENSORS:
        if any(re.fullmatch(pattern, name, re.DOTALL) for name in names):
            return what
    return None


def refused(config: dict) -> str | None:
    """Return what a config of open_clip or Hugging Face says of a model that jclip does not compute, or None."""
    problem = _open_clip(config["model_cfg"]) if isinstance(config.get("model_cfg"), dict) else _hugging_face(config)
    return problem and bounded.one_line(problem)


def _open_clip(model: dict) -> str | None:
    vision, text = section(model, "vision_cfg"), section(model, "text_cfg")
    if model.get("multimodal_cfg"):
        return "multimodal_cfg, a CoCa"
    if name := vision.get("timm_model_name"):
        known = next((family for family in ("siglip", "eva") if family in str(name).lower()), None)
        what = {"siglip": "a SigLIP", "eva": "an EVA-CLIP"}.get(known, "an image tower of timm")
        return f"timm_model_name {name}, {what}"
    if model.get("init_logit_bias") is not None:
        return "init_logit_bias, a SigLIP"
    if name := text.get("hf_model_name"):
        return f"hf_model_name {name}, a text tower of Hugging Face"
    for name, tower in (("vision_cfg", vision), ("text_cfg", text)):
        for key, value in tower.items():
            is_on = bool(value) or value == 0 and type(value) is not bool and key == "ls_init_value"
            if is_on and (key in OFF[name] + OFF_IN_BOTH or ONLY[name].get(key, value) != value):
                return f"{key} {value} in {name}"
    return None


def _hugging_face(config: dict) -> str | None:
    towers = [tower for name in ("vision", "text") if (tower := hugging_face_tower(config, name)) is not None]
    model_type = config.get("model_type", "clip")
    if towers and model_type != "clip":
        return f"model_type {model_type}"
    acts = [tower.get("hidden_act", "quick_gelu") for tower in towers]
    for act in acts:
        if not isinstance(act, str) or act not in HIDDEN_ACTS:
            return f"hidden_act {act}"
    if len(set(acts)) > 1:
        return f"hidden_act {acts[0]} for images and {acts[1]} for texts"
    for tower in towers:
        if tower.get("layer_norm_eps", EPSILON) != EPSILON:
            return f"layer_norm_eps {tower['layer_norm_eps']}"
    return None


def hugging_face_tower(config: dict, tower: str) -> dict | None:
    """Return the section of a tower in Hugging Face's config; the older name of it takes precedence, as there."""
    if not any(isinstance(config.get(f"{tower}_{name}"), dict) for name in ("config", "config_dict")):
        return None
    return {**section(config, f"{tower}_config"), **section(config, f"{tower}_config_dict")}


def section(config: dict, name: str) -> dict:
    """Return a section of a config; {} if it is missing or no dict."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}
