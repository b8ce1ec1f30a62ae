// Definitions of terms: keep them inside the window, and let Escape close them. On a touch screen, the first tap on a term
// shows its definition, and the second follows the link. Without this script they still appear.
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
  term.addEventListener("pointerdown", (event) => {
    const isOpen = getComputedStyle(term.querySelector(".definition")).display !== "none";
    term.dataset.opens = event.pointerType === "touch" && !isOpen;
  });
  term.addEventListener("click", (event) => {
    if (term.dataset.opens === "true") event.preventDefault();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    for (const term of document.querySelectorAll(".term:hover, .term:focus-within")) term.classList.add("closed");
  }
});
