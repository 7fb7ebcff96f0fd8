
"use strict";
const page = document.getElementById("page"), total = Number(page.dataset.pairs), key = "ab-" + page.dataset.page;
const duels = [...document.querySelectorAll(".duel")], end = document.getElementById("end");
const choices = document.getElementById("choices"), back = document.getElementById("back");
let answers = [];
try { answers = JSON.parse(localStorage.getItem(key) || "[]"); } catch { answers = []; }
if (!Array.isArray(answers) || answers.length > total) answers = [];
let at = answers.length;

function show() {
  const done = at >= total;
  duels.forEach((duel, place) => { duel.hidden = place !== at; });
  end.hidden = !done;
  choices.hidden = done;
  back.disabled = at === 0;
  document.getElementById("number").textContent = Math.min(at + 1, total);
  document.getElementById("progress").value = at;
  if (done) document.getElementById("judge").focus();
}

function keep() {
  try { localStorage.setItem(key, JSON.stringify(answers)); } catch { /* a private window: a reload starts again */ }
}

function choose(choice) {
  if (at >= total) return;
  answers = [...answers.slice(0, at), choice];
  at += 1;
  keep();
  show();
}

function undo() {
  if (at === 0) return;
  at -= 1;
  answers = answers.slice(0, at);
  keep();
  show();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-choice]");
  if (button) choose(button.dataset.choice);
});
back.addEventListener("click", undo);
document.getElementById("again").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
  if (choice) choose(choice);
  else if (event.key === "Backspace") undo();
  else return;
  event.preventDefault();
});
document.getElementById("save").addEventListener("submit", (event) => {
  event.preventDefault();
  const judge = document.getElementById("judge").value.trim();
  const text = JSON.stringify({ format: "altdiffusion-ab-1", page: page.dataset.page, judge, answers }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `answers-${page.dataset.page}-${judge.replace(/[^\p{L}\p{N}._-]+/gu, "-")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});
show();
