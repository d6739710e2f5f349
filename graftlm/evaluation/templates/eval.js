// The page is complete without this script: it adds choices, and values under the pointer, the finger and the arrow keys.
// All places come laid out with the page; nothing is computed here.
for (const controls of document.querySelectorAll(".controls")) controls.hidden = false;

for (const plot of document.querySelectorAll("[data-plot]")) {
  const tip = plot.querySelector(".tip");
  let current = null;
  const hide = () => { current?.classList.remove("current"); current = null; tip.hidden = true; };
  const items = () => {
    const shown = [...plot.querySelectorAll("[data-tip]")].filter((item) => !item.hidden);
    if (plot.dataset.plot === "across") shown.sort((a, b) => parseFloat(a.style.left) - parseFloat(b.style.left));
    return shown;
  };
  const show = (item) => {
    current?.classList.remove("current");
    current = item;
    item.classList.add("current");
    tip.textContent = item.dataset.tip;
    tip.hidden = false;
    const outer = plot.getBoundingClientRect(), inner = item.getBoundingClientRect();
    const x = inner.left - outer.left + inner.width / 2 - tip.offsetWidth / 2;
    const above = inner.top - outer.top - tip.offsetHeight - 6;
    tip.style.left = Math.max(0, Math.min(x, outer.width - tip.offsetWidth)) + "px";
    tip.style.top = (inner.top - tip.offsetHeight - 6 < 0 ? inner.bottom - outer.top + 6 : above) + "px";
  };
  const nearest = (event) => {
    let best = null, least = 60;
    for (const item of items()) {
      const box = item.getBoundingClientRect();
      const x = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
      const y = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
      const distance = Math.hypot(x, y);
      if (distance < least) { least = distance; best = item; }
    }
    if (best) show(best); else hide();
  };
  plot.addEventListener("pointermove", nearest);
  plot.addEventListener("pointerdown", nearest);
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
  document.addEventListener("pointerdown", (event) => { if (!plot.contains(event.target)) hide(); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("choose", hide);
  plot.addEventListener("keydown", (event) => {
    const all = items(), at = all.indexOf(current), last = all.length - 1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? last : at - 1, ArrowUp: at < 0 ? last : at - 1,
      Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined || last < 0) return;
    event.preventDefault();
    show(all[Math.max(0, Math.min(last, to))]);
  });
}

const line = (className, places) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "line");
  made.setAttribute("class", className);
  for (const [name, value] of Object.entries(places)) made.setAttribute(name, value);
  return made;
};
const label = (className, side, at, text) => {
  const made = document.createElement("span");
  made.className = className;
  made.style[side] = at + "%";
  made.textContent = text;
  made.setAttribute("aria-hidden", "true");
  return made;
};

for (const figure of document.querySelectorAll("[data-scatter]")) {
  const data = JSON.parse(figure.dataset.scatter);
  const find = (name) => figure.querySelector("[data-" + name + "]"), all = (name) => figure.querySelectorAll("[data-" + name + "]");
  const choices = [...figure.querySelectorAll("select")];
  const draw = () => {
    const up = data.up[choices[0].value], across = data.across[choices[1].value];
    find("title").textContent = up.label;
    find("axis-name").textContent = across.label;
    find("grid").replaceChildren(...up.ticks.map(([at]) => line("grid-line", { x1: 0, x2: 100, y1: 100 - at, y2: 100 - at })));
    find("up").replaceChildren(...up.ticks.map(([at, text]) => label("y-label", "top", 100 - at, text)));
    find("across").replaceChildren(...across.ticks.map(([at, text]) => label("x-label", "left", at, text)));
    const base = find("base"), name = find("base-name");
    find("base-score").textContent = up.baseText;
    base.setAttribute("visibility", up.base === null ? "hidden" : "visible");
    name.hidden = up.base === null;
    if (up.base !== null) {
      base.setAttribute("y1", 100 - up.base);
      base.setAttribute("y2", 100 - up.base);
      name.style.top = 100 - up.base + "%";
    }
    const whiskers = all("whisker"), scores = all("score"), costs = all("cost");
    all("point").forEach((point, at) => {
      const x = across.at[at], y = up.at[at];
      point.hidden = x === null || y === null;
      whiskers[at].setAttribute("visibility", point.hidden ? "hidden" : "visible");
      scores[at].textContent = up.texts[at];
      costs[at].textContent = across.texts[at];
      point.dataset.tip = figure.querySelectorAll(".points b")[at].textContent + ": " + up.texts[at] + " · " + across.texts[at];
      if (point.hidden) return;
      point.style.left = x + "%";
      point.style.top = 100 - y[0] + "%";
      for (const [key, value] of Object.entries({ x1: x, x2: x, y1: 100 - y[1], y2: 100 - y[2] })) whiskers[at].setAttribute(key, value);
    });
    find("plot").dispatchEvent(new Event("choose"));
  };
  for (const choice of choices) choice.addEventListener("change", draw);
  draw(); // a browser may have kept choices of an earlier visit
}

for (const figure of document.querySelectorAll("[data-reliability]")) {
  const data = JSON.parse(figure.dataset.reliability), choice = figure.querySelector("select");
  const path = (className, d, width) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "path");
    made.setAttribute("class", className);
    made.setAttribute("d", d);
    if (width) made.style.strokeWidth = width;
    return made;
  };
  const draw = () => {
    const curve = data[choice.value];
    figure.querySelector("[data-name]").textContent = curve.name;
    figure.querySelector("[data-curve]").replaceChildren(
      path("curve", curve.path), ...curve.points.map(([x, y, size]) => path("bin", "M" + x + " " + y + "h0", size)));
    figure.querySelector("[data-hits]").replaceChildren(...curve.points.map(([x, y], at) => {
      const hit = label("dot-hit", "left", x, "");
      hit.style.top = y + "%";
      hit.dataset.tip = curve.tips[at];
      return hit;
    }));
    figure.querySelector("[data-values]").replaceChildren(...curve.tips.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }));
    figure.querySelector("[data-plot]").dispatchEvent(new Event("choose"));
  };
  choice.addEventListener("change", draw);
  draw();
}

const lanes = document.querySelector("[data-lanes]");
const choose = () => {
  for (const lane of document.querySelectorAll(".change[data-number]")) lane.hidden = lanes.value !== "" && lanes.value !== lane.dataset.number;
  for (const plot of document.querySelectorAll("[data-plot]")) plot.dispatchEvent(new Event("choose"));
};
lanes?.addEventListener("change", choose);
if (lanes) choose();

const open = () => { const task = document.getElementById(location.hash.slice(1)); if (task?.matches("details")) task.open = true; };
addEventListener("hashchange", open);
open();
