// Definitions of terms: keep them inside the window, and let Escape close them. Without this script they still appear.
"use strict";

const place = (term) => {
  const definition = term.querySelector(".definition");
  term.style.setProperty("--shift", "0px");
  term.classList.remove("closed");
  const box = definition.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const shift = Math.max(8 - box.left, Math.min(0, width - 8 - box.right));
  term.style.setProperty("--shift", `${shift}px`);
};

for (const term of document.querySelectorAll(".term")) {
  term.addEventListener("pointerenter", () => place(term));
  term.addEventListener("focusin", () => place(term));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    for (const term of document.querySelectorAll(".term:hover, .term:focus-within")) term.classList.add("closed");
  }
});
