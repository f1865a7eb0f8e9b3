"""The recordings that there are: what each holds, those that are not finished, and the jobs that made them."""

from functools import partial

import streamlit as st

from . import auth, choices, jobs, recordings
from .jobs import plain

_UNFINISHED_SHOWN = 20
FIELDS_HELP = (
    "routing: chosen experts, their weights, entropies and margins; logprob: of each token; logits: of every router; "
    "experts: what each chosen expert adds; weights: how alike the experts' parameters are; attention: statistics of "
    "each head, with -tokens also of each token, with -weights those that need whole rows. More fields take more time."
)


def unfinished() -> None:
    """What was stopped, with the app or by somebody, or never began: each can go on with a click."""
    above = jobs.told_of("record")
    found = [each for each in jobs.host().unfinished(owner=auth.visitor()) if each.name != above]
    if not found:
        return
    st.subheader("Not finished")
    st.caption("Cancelled, or stopped with the app. What is on disk is whole, and “Go on” records the rest.")
    for each in found[:_UNFINISHED_SHOWN]:
        row = st.container(horizontal=True, vertical_alignment="center")
        row.markdown(f"**{plain(each.name)}**", width="content")
        row.text(each.title, width="content")
        row.caption(f"{each.parts} of {each.of_parts} parts" if each.of_parts else "not begun", width="content")
        if each.arguments:
            row.button("Go on", key=f"resume {each.name}", on_click=_resume, args=(each.name,))
            if not each.of_parts:
                row.button("Forget", key=f"forget {each.name}", on_click=_forget, args=(each.name,), type="tertiary")
        else:
            with row.popover("How to go on", type="tertiary"):
                if each.command:
                    st.code(each.command, language="bash", wrap_lines=True)
                else:
                    st.caption("It was begun from Python: the same call of `wb.record` goes on with it.")
    if len(found) > _UNFINISHED_SHOWN:
        st.caption(f"And {len(found) - _UNFINISHED_SHOWN} more.")


def _resume(name: str) -> None:
    with jobs.sentences():
        jobs.submit("record", partial(jobs.host().resume, name))


def _forget(name: str) -> None:
    with jobs.sentences():
        jobs.host().forget(name, owner=auth.visitor())


def listed() -> None:
    """The list of recordings; a chosen one can be opened and, in an app that is not shared, deleted."""
    st.subheader("Recordings")
    rows = recordings.rows()
    if not rows:
        st.caption("There is none yet. Record a prompt above; it takes a few seconds with the bundled model.")
        jobs.follow_first()
        return
    columns = {
        "documents": st.column_config.NumberColumn(format="localized"),
        "tokens": st.column_config.NumberColumn(format="localized"),
    }
    chosen = st.dataframe(
        rows, hide_index=True, on_select="rerun", selection_mode="single-row", key="recordings", column_config=columns,
        placeholder="–",
    )  # fmt: skip
    at = [row for row in chosen.selection.rows if row < len(rows)]
    if not at:
        st.caption("Choose a row to open its recording.")
        return
    name, state = rows[at[0]]["recording"], rows[at[0]]["state"]
    row = st.container(horizontal=True, vertical_alignment="center")
    if state == "finished" and row.button(f"Open {plain(name)}", icon=":material/open_in_new:", type="primary"):
        choices.open_tokens(name)
    if state != "finished":
        row.text(f"{name}: {state}", width="content")
    if not auth.is_shared():
        with row.popover("Delete", icon=":material/delete:", type="tertiary"):
            st.write(f"Delete {plain(name)} from the disk? There is no way back.")
            st.button("Delete for good", key=f"delete {name}", on_click=_delete, args=(name,), type="primary")


def _delete(name: str) -> None:
    with jobs.sentences():
        jobs.host().delete(name)
        st.toast(f"{plain(name)} is deleted.", icon=":material/delete:")


def made_by() -> None:
    """The jobs since the app was started, with the seconds that each took."""
    rows = jobs.rows()
    with st.expander(f"Jobs since the app was started ({len(rows)})", icon=":material/list:"):
        st.caption("Of each job the seconds that loading its model took, where it was not in memory, and those after.")
        st.dataframe(rows, hide_index=True, key="jobs-table", placeholder="–")
