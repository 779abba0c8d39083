"use strict";
// Hides what does not hold every word that is searched for. Without it the page reads just as well.
const search = document.getElementById("search");
const routes = document.querySelector(".routes");
const found = [...document.querySelectorAll("article")].map((article) => ({
  article,
  text: article.textContent.toLowerCase(),
  link: document.querySelector(`li[data-for="${article.id}"]`),
}));
const groups = document.querySelectorAll(".group");
const nothing = document.querySelector(".nothing");

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let any = false;
  for (const { article, text, link } of found) {
    const fits = words.every((word) => text.includes(word));
    any ||= fits;
    article.hidden = !fits;
    if (link) link.hidden = !fits;
  }
  for (const group of groups) group.hidden = !group.querySelector("article:not([hidden])");
  for (const links of document.querySelectorAll(".links")) {
    const list = links.querySelector("ul");
    links.hidden = list ? !list.querySelector("li:not([hidden])") : words.length > 0;
  }
  document.querySelector(".about").hidden = words.length > 0;
  nothing.hidden = any;
}

// On narrow screens the routes are folded until they are wanted.
if (matchMedia("(max-width: 56rem)").matches) routes.open = false;
search.closest("label").hidden = false;
search.addEventListener("input", () => {
  if (search.value) routes.open = true;
  filter();
});
// A link to what is hidden shows it.
addEventListener("hashchange", () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.closest("[hidden]")) {
    search.value = "";
    filter();
    target.scrollIntoView();
  }
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== search) {
    event.preventDefault();
    search.focus();
  }
});
