export default {
  render({ model, el }) {
    const drawing = document.createElement("div");
    const tip = document.createElement("div");
    tip.className = "wb-tip";
    tip.hidden = true;
    el.classList.add("wb-pane");
    el.append(drawing, tip);
    const draw = () => {
      const focused = drawing.contains(document.activeElement);
      drawing.innerHTML = model.get("svg");
      tip.hidden = true;
      if (focused) drawing.querySelector("svg")?.focus();
    };
    draw();
    model.on("change:svg", draw);
    drawing.addEventListener("click", (event) => {
      const mark = event.target.closest("[data-key]");
      if (mark) model.send({ key: mark.dataset.key });
    });
    drawing.addEventListener("pointermove", (event) => {
      const mark = event.target.closest("[data-tip]");
      tip.hidden = !mark;
      if (!mark) return;
      tip.textContent = mark.dataset.tip;
      const box = el.getBoundingClientRect();
      const left = event.clientX - box.left;
      tip.style.top = `${event.clientY - box.top + 14}px`;
      tip.style.left = left > box.width / 2 ? "" : `${left + 10}px`;
      tip.style.right = left > box.width / 2 ? `${box.width - left + 6}px` : "";
    });
    drawing.addEventListener("pointerleave", () => { tip.hidden = true; });
    drawing.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!(event.key in steps)) return;
      event.preventDefault();
      event.stopPropagation();
      model.send({ step: steps[event.key] });
    });
  },
};
