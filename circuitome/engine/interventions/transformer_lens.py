"""What circuitome calls the hooks of TransformerLens, for people who come from there."""

import re

TABLE = {
    r"hook_embed": "embed",
    r"blocks.L.hook_resid_pre": "aL.resid_pre",
    r"blocks.L.hook_resid_mid": "aL.resid_mid",
    r"blocks.L.hook_resid_post": "aL.resid_post",
    r"blocks.L.attn.hook_q": "aL.hH.q",
    r"blocks.L.attn.hook_k": "aL.kvK.k",
    r"blocks.L.attn.hook_v": "aL.kvK.v",
    r"blocks.L.attn.hook_pattern": "aL.hH.pattern",
    r"blocks.L.attn.hook_z": "aL.hH.z",
    r"blocks.L.attn.hook_result": "aL.hH.out",
    r"blocks.L.hook_attn_out": "aL.out",
    r"blocks.L.hook_mlp_in": "aL.resid_mid",
    r"blocks.L.ln2.hook_normalized": "mL.in",
    r"blocks.L.mlp.hook_post": "mL.hidden",
    r"blocks.L.hook_mlp_out": "mL.out",
    r"ln_final.hook_in": "final",
}
"""By hook name with L for the layer: our name, with H for a head and K for a key/value head."""

_NAME = re.compile(r"(?:blocks\.\d+\.|ln_final\.|hook_|.*\.hook_)")


def translated(name: str, n_heads: int, n_kv_heads: int) -> str:
    """A sentence that says what ours for a hook of TransformerLens is; empty for text that is no hook of it."""
    if not _NAME.match(name):
        return ""
    number = re.search(r"\d+", name)
    layer = number.group() if number else ""
    site = TABLE.get(re.sub(r"(?<=blocks\.)\d+", "L", name))
    if site is None:
        return f"circuitome has no site for {name} of TransformerLens; docs/interventions.md lists those it has."
    head = min(6, (n_kv_heads if "K" in site else n_heads) - 1)
    kind = " of head H" if "H" in site else " of key/value head H" if "K" in site else ""
    ours = site.replace("L", layer).replace("H", str(head)).replace("K", str(head))
    return f"circuitome calls {name}{kind.replace('H', str(head))} `{ours}`."
