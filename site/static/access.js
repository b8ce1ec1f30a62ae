// What screen readers and keyboards need, and what the theme and Sphinx leave out.
"use strict";

for (const summary of document.querySelectorAll("summary")) {
  if (!summary.textContent.trim()) summary.ariaLabel = "Pages of this part";
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
letScroll();
addEventListener("resize", letScroll);
