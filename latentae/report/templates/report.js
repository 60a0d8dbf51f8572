"use strict";
(() => {
  const data = JSON.parse(document.getElementById("pictures-data").textContent);
  const element = (id) => document.getElementById(id);
  const root = document.documentElement;
  element("theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (!data.pictures.length) return;

  const [before, after, canvas] = [element("before"), element("after"), element("difference")];
  const [stage, layers, edge, wipe] = [element("stage"), element("layers"), element("edge"), element("wipe")];
  const state = { picture: 0, left: -1, model: 0, difference: false, zoom: 0, filter: "" };
  const all = (selector) => [...document.querySelectorAll(selector)];

  const isShown = (picture) => picture.why.some((why) => why.startsWith(state.filter));
  const shown = () => data.pictures.flatMap((picture, position) => (isShown(picture) ? [position] : []));

  // Small pictures grow by whole numbers, so that every pixel stays a square.
  function fit() {
    const room = Math.min(stage.clientWidth / before.naturalWidth, (0.75 * innerHeight) / before.naturalHeight);
    return room < 1 ? room : Math.min(8, Math.floor(room));
  }

  function resize() {
    const scale = state.zoom || fit();
    for (const layer of [before, after, canvas]) {
      layer.style.width = `${before.naturalWidth * scale}px`;
      layer.style.height = `${before.naturalHeight * scale}px`;
    }
    wipe.style.width = `${before.naturalWidth * scale}px`; // at most the stage's
  }

  function split() {
    const share = Number(wipe.value);
    after.style.clipPath = `inset(0px 0px 0px ${share}%)`;
    edge.style.left = `${share}%`;
    edge.hidden = state.difference;
  }

  function amplify() {
    canvas.hidden = !state.difference;
    if (!state.difference || !before.complete || !after.complete) return;
    const [width, height] = [before.naturalWidth, before.naturalHeight];
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const pixels = (image) => {
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, width, height);
    };
    const [left, right] = [pixels(before), pixels(after)];
    for (let i = 0; i < left.data.length; i++) {
      if (i % 4 !== 3) right.data[i] = 128 + data.amplification * (right.data[i] - left.data[i]);
    }
    context.putImageData(right, 0, 0);
  }

  function press(selector, isPressed) {
    for (const button of all(selector)) button.setAttribute("aria-pressed", String(isPressed(button.dataset)));
  }

  function row(kind, cells) {
    const line = document.createElement("tr");
    cells.forEach((text, column) => {
      const cell = document.createElement(kind === "head" || column === 0 ? "th" : "td");
      cell.textContent = text;
      line.append(cell);
    });
    return line;
  }

  function tabulate(picture) {
    const labels = [...new Set(Object.values(picture.values).flatMap((values) => Object.keys(values)))];
    const lines = data.models.map((model, position) => {
      const values = picture.values[model] || {};
      const line = row("body", [model, ...labels.map((label) => values[label] || "-")]);
      line.classList.toggle("current", position === state.model);
      return line;
    });
    element("values").replaceChildren(row("head", ["this image", ...labels]), ...lines);
  }

  function render() {
    const picture = data.pictures[state.picture];
    const [left, right] = [data.models[state.left], data.models[state.model]];
    before.src = data.files[left === undefined ? picture.original : picture.reconstructions[left]];
    before.alt = left === undefined ? `original of ${picture.name}` : `reconstruction by ${left}`;
    after.src = data.files[picture.reconstructions[right]];
    after.alt = `reconstruction by ${right}`;
    const place = `${shown().indexOf(state.picture) + 1} of ${shown().length}`;
    const why = [...picture.why, picture.part].filter(Boolean).join(", ");
    element("caption").textContent = `${place}: ${picture.name} (${why}) · ${left || "original"} | ${right}`;
    tabulate(picture);
    press("[data-model]", (own) => Number(own.model) === state.model);
    press("[data-picture]", (own) => Number(own.picture) === state.picture);
    press("[data-filter]", (own) => own.filter === state.filter);
    press("#toggle-difference", () => state.difference);
    for (const button of all("[data-picture]")) {
      button.hidden = !isShown(data.pictures[Number(button.dataset.picture)]);
    }
    element("left").value = String(state.left);
    element("zoom").value = String(state.zoom);
    if (before.complete) resize();
    split();
    amplify();
  }

  function change(values) {
    Object.assign(state, values);
    if (!shown().includes(state.picture)) state.picture = shown()[0];
    render();
  }

  function step(by) {
    const list = shown();
    change({ picture: list[(list.indexOf(state.picture) + by + list.length) % list.length] });
  }

  function dragTo(event) {
    const box = layers.getBoundingClientRect();
    wipe.value = String((100 * (event.clientX - box.left)) / box.width);
    split();
  }

  for (const image of [before, after]) {
    image.draggable = false;
    image.addEventListener("load", () => { resize(); amplify(); });
  }
  addEventListener("resize", resize);
  wipe.addEventListener("input", split);
  layers.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || state.difference) return;
    layers.setPointerCapture(event.pointerId);
    dragTo(event);
  });
  layers.addEventListener("pointermove", (event) => {
    if (layers.hasPointerCapture(event.pointerId)) dragTo(event);
  });
  element("left").addEventListener("change", (event) => change({ left: Number(event.target.value) }));
  element("zoom").addEventListener("change", (event) => change({ zoom: Number(event.target.value) }));
  const onClick = (selector, handler) =>
    all(selector).forEach((button) => button.addEventListener("click", () => handler(button.dataset)));
  onClick("#toggle-difference", () => change({ difference: !state.difference }));
  onClick("[data-model]", (own) => change({ model: Number(own.model) }));
  onClick("[data-picture]", (own) => change({ picture: Number(own.picture) }));
  onClick("[data-filter]", (own) => change({ filter: own.filter }));

  addEventListener("keydown", (event) => {
    if (event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const digit = Number(event.key);
    if (event.key.startsWith("Arrow") && event.target.matches("input")) return; // moves the slider
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "d") change({ difference: !state.difference });
    else if (event.key === "z") change({ zoom: { 0: 1, 1: 2, 2: 4, 4: 0 }[state.zoom] });
    else if (digit >= 1 && digit <= data.models.length) change({ model: digit - 1 });
    else return;
    event.preventDefault();
  });
  for (const image of all("[data-source]")) image.src = data.files[image.dataset.source];
  render();
})();
