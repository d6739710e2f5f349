// The page is complete without this script: it adds values under the pointer and buttons that copy.
for (const plot of document.querySelectorAll("[data-points]")) {
  const points = JSON.parse(plot.dataset.points);
  const line = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
  const hide = () => { line.hidden = tip.hidden = true; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = 100 * (event.clientX - box.left) / box.width, y = 100 * (event.clientY - box.top) / box.height;
    let best = null, least = Infinity;
    for (const point of points) {
      const distance = Math.abs(point[0] - x) * box.width + 0.15 * Math.abs(point[1] - y) * box.height;
      if (distance < least) { least = distance; best = point; }
    }
    if (!best) return;
    line.style.left = best[0] + "%";
    tip.style.left = best[0] + "%";
    tip.style.top = best[1] + "%";
    tip.dataset.side = best[0] > 50 ? "left" : "right";
    tip.textContent = best[2];
    line.hidden = tip.hidden = false;
  });
  plot.addEventListener("pointerleave", hide);
}
for (const block of document.querySelectorAll("[data-copy]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy: " + block.dataset.copy);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(block.dataset.copy);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(block.querySelector("code"));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
}
