// Before the first paint, so that a remembered choice does not flash in the other colours.
try {
  const kept = localStorage.getItem("theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // storage is blocked: the system's colours
}
