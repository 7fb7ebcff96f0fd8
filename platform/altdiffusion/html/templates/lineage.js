
"use strict";
const frame = document.querySelector(".drawing"), svg = frame.querySelector("svg");
const width = svg.viewBox.baseVal.width, height = svg.viewBox.baseVal.height;
let scale = 1, held = null, moved = false;

function zoom(to, x = frame.clientWidth / 2, y = frame.clientHeight / 2) {
  const next = Math.min(4, Math.max(0.05, to)), left = (frame.scrollLeft + x) / scale, top = (frame.scrollTop + y) / scale;
  scale = next;
  svg.setAttribute("width", width * scale);
  svg.setAttribute("height", height * scale);
  frame.scrollLeft = left * scale - x;
  frame.scrollTop = top * scale - y;
}

const fit = () => zoom(Math.min(1, frame.clientWidth / width, frame.clientHeight / height));
const acts = { in: () => zoom(scale * 1.25), out: () => zoom(scale / 1.25), fit, one: () => zoom(1) };
const keys = { "+": acts.in, "=": acts.in, "-": acts.out, "0": acts.one, "f": acts.fit };

async function copy(button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch { /* a frame without the permission, such as MLflow's */
    const area = document.createElement("textarea");
    area.value = button.dataset.copy;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = done ? "copied" : "not allowed";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}

function show(row) {
  document.querySelectorAll(".here").forEach((one) => one.classList.remove("here"));
  row.classList.add("here");
  row.scrollIntoView({ block: "center" });
}

document.addEventListener("click", (event) => {
  if (moved) { moved = false; event.preventDefault(); return; }
  const button = event.target.closest("button"), link = event.target.closest("a");
  if (button && button.dataset.copy) copy(button);
  else if (button && button.dataset.zoom) acts[button.dataset.zoom]();
  else if (link && link.getAttribute("href").startsWith("#")) {
    event.preventDefault();
    show(document.getElementById(link.getAttribute("href").slice(1)));
  }
});
frame.addEventListener("keydown", (event) => {
  if (keys[event.key] && !event.ctrlKey && !event.metaKey) { keys[event.key](); event.preventDefault(); }
});
frame.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  const box = frame.getBoundingClientRect();
  zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
frame.addEventListener("pointerdown", (event) => {
  moved = false;
  if (event.pointerType !== "mouse" || event.button !== 0) return;
  held = { x: event.clientX, y: event.clientY, left: frame.scrollLeft, top: frame.scrollTop };
});
window.addEventListener("pointermove", (event) => {
  if (!held) return;
  const x = event.clientX - held.x, y = event.clientY - held.y;
  if (!moved && Math.hypot(x, y) < 5) return;
  moved = true;
  frame.classList.add("moving");
  frame.scrollLeft = held.left - x;
  frame.scrollTop = held.top - y;
});
window.addEventListener("pointerup", () => { held = null; frame.classList.remove("moving"); });
svg.addEventListener("dragstart", (event) => event.preventDefault());
document.querySelector(".tools").hidden = false;
const root = svg.querySelector(".root"), here = root && root.getBoundingClientRect(), place = frame.getBoundingClientRect();
if (here) {
  frame.scrollLeft += here.left + here.width / 2 - place.left - place.width / 2;
  frame.scrollTop += here.top + here.height / 2 - place.top - place.height / 2;
}
