"""Who visits: on one's own machine nobody is asked; in a shared app whom Streamlit's log-in or the reverse proxy names.

There is no log-in of our own. What each visitor may do, the model host decides (`workbench/jobs/limits.py`).
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from workbench.jobs.limits import Rules, rules_from_json

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def rules() -> Rules:
    """As `workbench app` was told; without it those of one's own machine."""
    told = os.environ.get("WORKBENCH_RULES")
    return rules_from_json(told) if told else Rules()


def is_shared() -> bool:
    """Whether visitors are told apart and limited."""
    return rules().limits is not None


def visitor() -> str:
    """What the visitor is known by; empty where nobody is asked, and for who is not signed in."""
    if not is_shared():
        return ""
    header = proxy_header()
    return named_by_proxy(st.context.headers.get_all(header)) if header else signed_in(st.user.to_dict())


def proxy_header() -> str:
    """The header in which the reverse proxy names the visitor; empty where Streamlit's log-in does."""
    return os.environ.get("WORKBENCH_PROXY_HEADER", "")


def named_by_proxy(values: Sequence[str]) -> str:
    """The one value of the header: two are the proxy's and a forger's, and which is which cannot be told."""
    if st.get_option("server.address") not in _LOOPBACK:  # else anybody could come past the proxy and name themselves
        return ""
    return values[0] if len(values) == 1 and values[0].isprintable() and 0 < len(values[0].strip()) <= 200 else ""


def signed_in(claims: Mapping[str, Any]) -> str:
    """The name of who is signed in, of what Streamlit's log-in says; empty for nobody."""
    if not claims.get("is_logged_in"):
        return ""
    return " ".join(str(claims[name]) for name in ("iss", "sub", "email") if claims.get(name))


def enter() -> None:
    """Says who is signed in; of a shared app, who is not known sees nothing but the way in."""
    if not is_shared():
        return
    by_proxy = bool(proxy_header())
    if visitor():
        name = visitor() if by_proxy else str(st.user.to_dict().get("email") or st.user.to_dict().get("name") or "you")
        st.sidebar.text(f"Signed in as {name}", width="stretch")
        if not by_proxy:
            st.sidebar.button("Sign out", on_click=st.logout, type="tertiary", icon=":material/logout:")
        return
    if by_proxy:
        st.error(
            "This app is shared, and the proxy before it named nobody, or more than one. Come through its own "
            "address; if you did, its operator has to set the header that the app was started with.",
            icon=":material/lock:",
        )
    else:
        st.title("MoE workbench")
        for provider in _providers():
            named = f" with {provider}" if provider else ""
            st.button(f"Sign in{named}", on_click=partial(st.login, *([provider] if provider else [])), type="primary")
    st.stop()


def _providers() -> list[str]:
    """The providers that the operator's secrets name; one without a name where there is but one."""
    return [name for name, value in st.secrets["auth"].items() if hasattr(value, "items")] or [""]
