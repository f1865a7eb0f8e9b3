// One step of the Back button for each page. Streamlit pushes the bare address of a new page, and a second entry as soon
// as the page has written its choices into it. An entry that only completes the address of a page that was just opened,
// before the visitor did anything there, takes the place of the one that it completes.
(() => {
  const push = history.pushState;
  let arriving = true;
  const acted = () => { arriving = false; };
  addEventListener("pointerdown", acted, true);
  addEventListener("keydown", acted, true);
  addEventListener("popstate", () => { arriving = true; });
  const completes = (there) => {
    const said = new URLSearchParams(location.search);
    return [...said.keys()].every((name) => said.get(name) === there.searchParams.get(name));
  };
  history.pushState = function (state, unused, url) {
    const there = new URL(url, location.href);
    if (there.pathname !== location.pathname) {
      arriving = true;
      return push.call(history, state, unused, url);
    }
    const passing = location.search === "" || (arriving && completes(there));
    return (passing ? history.replaceState : push).call(history, state, unused, url);
  };
})();
