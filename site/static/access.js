// What screen readers and keyboards need, and what the theme and Sphinx leave out.
"use strict";

// a summary is named by its text; the buttons of the tree of pages have none
for (const summary of document.querySelectorAll("summary")) {
  summary.ariaLabel = summary.textContent.trim() ? null : "Pages of this part";
}
// Sphinx writes the parameters of a long signature as a list of definitions that define nothing
for (const part of document.querySelectorAll(".sig > dl, .sig > dl > dd")) part.role = "none";

/** A formula that is wider than the page scrolls; then arrow keys can scroll it, too. */
const letScroll = () => {
  for (const formula of document.querySelectorAll("div.math")) {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
    else formula.removeAttribute("tabindex");
  }
};
// the button that hides the sidebar would lose the focus when it moves
for (const button of document.querySelectorAll(".sidebar-toggle")) {
  button.addEventListener("click", () => requestAnimationFrame(() => button.focus()));
}
letScroll();
addEventListener("resize", letScroll);
