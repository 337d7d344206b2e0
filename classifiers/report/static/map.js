// Maps of recordings in two and three dimensions: turned by dragging or by the arrow keys.
"use strict";

const REACH = 14; // px: how far from a point a pointer still means it
const MARGIN = 22; // px around all points
const STEP = 0.12; // radians that an arrow key turns by
const PER_PIXEL = 0.008; // radians that a drag turns by
const DEPTH = 0.28; // how much nearer points are drawn larger
const MARK_SIZES = [2, 4.5]; // px, of a crowd and of few

// Shapes tell the classes apart where colours do not. Around 0,0, of about equal area.
const SHAPES = {
  anger: "M0,-1.2L1.12,.78L-1.12,.78Z",
  happiness: "M1,0A1,1 0 1 1 -1,0A1,1 0 1 1 1,0Z",
  sadness: "M0,1.2L1.12,-.78L-1.12,-.78Z",
  neutral: "M-.88,-.88H.88V.88H-.88Z",
  fear: "M0,-1.28L1.1,0L0,1.28L-1.1,0Z",
  disgust: "M-.4,-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",
  surprise: "M0,-1.3L.35,-.45L1.24,-.4L.55,.16L.77,1.04L0,.55L-.77,1.04L-.55,.16L-1.24,-.4L-.35,-.45Z",
  calm: "M1.1,0L.55,.95L-.55,.95L-1.1,0L-.55,-.95L.55,-.95Z",
  boredom: "M-1.25,-.5H1.25V.5H-1.25Z",
  other: "M-1.1,-.55L-.55,-1.1L0,-.55L.55,-1.1L1.1,-.55L.55,0L1.1,.55L.55,1.1L0,.55L-.55,1.1L-1.1,.55L-.55,0Z",
};

class PointMap {
  constructor(element, data) {
    this.element = element;
    this.data = data;
    this.canvas = element.querySelector("canvas");
    this.tip = element.querySelector(".tip");
    this.paths = data.marks.map((name) => new Path2D(SHAPES[name]));
    this.hidden = new Set();
    this.onlyWrong = false;
    this.dims = 2;
    this.zoom = 1;
    this.turn = [0.6, 0.35]; // around the upright axis, then forwards
    this.hovered = -1;
    this.#legend();
    this.#listen();
    new ResizeObserver(() => this.#resize()).observe(this.canvas);
    for (const query of ["(prefers-color-scheme: dark)", "print"]) {
      matchMedia(query).addEventListener("change", () => this.draw());
    }
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (!this.width || !this.height) return;
    const css = getComputedStyle(this.canvas);
    const colours = this.data.marks.map((name) => css.getPropertyValue(`--e-${name}`));
    const ink = css.getPropertyValue("--ink");
    this.#place();
    const crowd = Math.sqrt((this.width * this.height) / this.data.ids.length) / 6;
    const size = Math.max(MARK_SIZES[0], Math.min(MARK_SIZES[1], crowd));
    for (const i of this.order) {
      const [x, y, near] = this.placed[i];
      const radius = size * (1 + DEPTH * near);
      const code = this.data.true[i];
      context.globalAlpha = this.dims === 3 ? 0.62 + 0.3 * near : 0.85;
      context.setTransform(ratio * radius, 0, 0, ratio * radius, ratio * x, ratio * y);
      context.fillStyle = colours[code];
      context.fill(this.paths[code]);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      if (this.data.predicted[i] !== code || i === this.hovered) {
        context.beginPath();
        context.arc(x, y, radius + (i === this.hovered ? 5 : 0.6 * size), 0, 2 * Math.PI);
        context.strokeStyle = ink;
        context.lineWidth = i === this.hovered ? 2 : 1;
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }

  /** Screen place and nearness (-1 to 1) of each point, and the order from far to near. */
  #place() {
    const columns = this.data.points[this.dims - 2];
    // Flat, the points fill the stage; in the round, a ball that holds them at any turn does.
    const reach = this.dims === 2 ? columns.map((each) => each.reduce((a, b) => Math.max(a, Math.abs(b)), 1)) : [1400, 1400];
    const room = [this.width / 2 - MARGIN, this.height / 2 - MARGIN];
    const scale = this.zoom * Math.min(room[0] / reach[0], room[1] / reach[1]);
    const [cosTurn, sinTurn] = [Math.cos(this.turn[0]), Math.sin(this.turn[0])];
    const [cosTilt, sinTilt] = [Math.cos(this.turn[1]), Math.sin(this.turn[1])];
    this.placed = columns[0].map((x, i) => {
      let [y, depth] = [columns[1][i], 0];
      if (this.dims === 3) {
        const z = columns[2][i];
        const turned = cosTurn * x + sinTurn * z;
        const behind = cosTurn * z - sinTurn * x;
        [x, y, depth] = [turned, cosTilt * y - sinTilt * behind, sinTilt * y + cosTilt * behind];
      }
      return [this.width / 2 + scale * x, this.height / 2 - scale * y, Math.max(-1, Math.min(1, depth / 1400))];
    });
    this.order = columns[0].map((_, i) => i).filter((i) => this.#visible(i));
    if (this.dims === 3) this.order.sort((a, b) => this.placed[a][2] - this.placed[b][2]);
  }

  #visible(i) {
    const wrong = this.data.true[i] !== this.data.predicted[i];
    return !this.hidden.has(this.data.true[i]) && (wrong || !this.onlyWrong);
  }

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.draw();
  }

  #turnBy(around, forwards) {
    if (this.dims !== 3) return;
    const limit = Math.PI / 2;
    this.turn = [this.turn[0] + around, Math.max(-limit, Math.min(limit, this.turn[1] + forwards))];
    this.#hover(-1);
    this.draw();
  }

  #zoomBy(factor) {
    this.zoom = Math.max(0.5, Math.min(12, this.zoom * factor));
    this.#hover(-1);
    this.draw();
  }

  // --- what can be pressed

  #legend() {
    const list = this.element.querySelector(".legend");
    this.data.classes.forEach((name, code) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      const mark = this.data.marks[code]; // one of SHAPES: no text from outside is read as markup
      const path = `<path d="${SHAPES[mark]}" style="fill: var(--e-${mark})"/>`;
      button.innerHTML = `<svg viewBox="-1.5 -1.5 3 3" aria-hidden="true">${path}</svg>`;
      button.append(name);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(code)) this.hidden.add(code);
        button.setAttribute("aria-pressed", String(!this.hidden.has(code)));
        this.draw();
      });
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    });
  }

  #listen() {
    const every = this.element.querySelectorAll("[data-dims]");
    every.forEach((button) =>
      button.addEventListener("click", () => {
        this.dims = Number(button.dataset.dims);
        every.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
        this.canvas.classList.toggle("turns", this.dims === 3);
        this.#hover(-1);
        this.draw();
      }),
    );
    this.element.querySelectorAll("[data-zoom]").forEach((button) =>
      button.addEventListener("click", () => this.#zoomBy(button.dataset.zoom === "in" ? 1.4 : 1 / 1.4)),
    );
    const wrong = this.element.querySelector("[data-wrong]");
    wrong.addEventListener("click", () => {
      this.onlyWrong = !this.onlyWrong;
      wrong.setAttribute("aria-pressed", String(this.onlyWrong));
      this.draw();
    });

    let grabbed = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      grabbed = [event.offsetX, event.offsetY];
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (grabbed && this.dims === 3) {
        this.#turnBy(PER_PIXEL * (event.offsetX - grabbed[0]), PER_PIXEL * (event.offsetY - grabbed[1]));
        grabbed = [event.offsetX, event.offsetY];
      } else {
        this.#hover(this.#near(event.offsetX, event.offsetY));
      }
    });
    this.canvas.addEventListener("pointerup", (event) => {
      grabbed = null;
      this.#hover(this.#near(event.offsetX, event.offsetY));
    });
    this.canvas.addEventListener("pointercancel", () => (grabbed = null));
    this.canvas.addEventListener("pointerleave", () => this.#hover(-1));
    this.canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const turn = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
      const zoom = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 };
      if (event.key in turn && this.dims === 3) this.#turnBy(...turn[event.key]);
      else if (event.key in zoom) this.#zoomBy(zoom[event.key]);
      else return;
      event.preventDefault();
    });
  }

  #near(x, y) {
    let [best, least] = [-1, REACH ** 2];
    for (const i of this.order ?? []) {
      const distance = (this.placed[i][0] - x) ** 2 + (this.placed[i][1] - y) ** 2;
      if (distance <= least) [best, least] = [i, distance]; // of equals the nearest to the eye
    }
    return best;
  }

  #hover(i) {
    if (i === this.hovered) return;
    this.hovered = i;
    this.tip.hidden = i < 0;
    if (i >= 0) {
      const { ids, classes, true: right, predicted } = this.data;
      const name = document.createElement("b");
      name.textContent = ids[i];
      const guess = right[i] === predicted[i] ? "predicted right" : `predicted ${classes[predicted[i]]}`;
      this.tip.replaceChildren(name, `${classes[right[i]]}, ${guess}`);
      const [x, y] = this.placed[i];
      this.tip.style.left = `${Math.max(4, Math.min(x + 12, this.width - this.tip.offsetWidth - 4))}px`;
      this.tip.style.top = `${Math.max(4, Math.min(y + 12, this.height - this.tip.offsetHeight - 4))}px`;
    }
    this.draw();
  }
}

const maps = JSON.parse(document.getElementById("maps").textContent);
for (const element of document.querySelectorAll("[data-map]")) {
  element.pointMap = new PointMap(element, maps[element.dataset.map]);
}
// What is folded away on a screen is there on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
