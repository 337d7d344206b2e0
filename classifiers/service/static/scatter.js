// The map: a canvas of points that can be pointed at, walked through with the arrow keys, and zoomed.

import { markOf, pathOf } from "./marks.js";

const REACH = 16; // px: how far from a point a pointer still means it
const MARGIN = 28; // px around all points
const MAX_ZOOM = 40;
const GLIDE_MS = 220;
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

export class Scatter extends EventTarget {
  // Events: "hover" and "select", with detail an index of a point or -1.
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.points = null; // {position, x, y, id, emotion, speaker}: aligned columns
    this.hidden = new Set(); // emotions
    this.hovered = this.selected = -1;
    this.linked = []; // indices: the neighbours of what is selected
    this.query = null; // [x, y] of a recording that is not of the run
    this.view = null; // {x, y, zoom}: the middle, in the map's own units
    this.queued = false;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    const colours = matchMedia("(prefers-color-scheme: dark)");
    colours.addEventListener("change", () => this.draw());
    this.#listen();
  }

  setPoints(points) {
    this.points = points;
    this.paths = new Map([...new Set(points.emotion)].map((name) => [name, pathOf(name)]));
    this.fit(false);
  }

  fit(glide = true) {
    if (!this.points) return;
    const all = this.query ? [this.query] : [];
    const xs = this.points.x.concat(all.map((p) => p[0]));
    const ys = this.points.y.concat(all.map((p) => p[1]));
    const [left, right] = extent(xs);
    const [bottom, top] = extent(ys);
    this.span = [right - left || 1, top - bottom || 1];
    this.#go({ x: (left + right) / 2, y: (bottom + top) / 2, zoom: 1 }, glide);
  }

  zoomBy(factor, at = [this.width / 2, this.height / 2], glide = true) {
    if (!this.view) return;
    const zoom = Math.min(MAX_ZOOM, Math.max(0.5, this.view.zoom * factor));
    const [x, y] = this.#unproject(at); // stays where it is
    const share = this.view.zoom / zoom;
    this.#go({ x: x + (this.view.x - x) * share, y: y + (this.view.y - y) * share, zoom }, glide);
  }

  select(index, linked = []) {
    this.selected = index;
    this.linked = linked;
    if (index >= 0) {
      this.query = null;
      this.#reveal([this.points.x[index], this.points.y[index]]);
    }
    this.draw();
  }

  showQuery(point, linked) {
    this.selected = -1;
    this.query = point;
    this.linked = linked;
    if (point) this.#reveal(point);
    this.draw();
  }

  draw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.#draw();
    });
  }

  /** Screen place of a point, for the tip beside it. */
  placeOf(index) {
    return this.#project([this.points.x[index], this.points.y[index]]);
  }

  // --- drawing

  #resize() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.#draw();
  }

  get scale() {
    const fits = [(this.width - 2 * MARGIN) / this.span[0], (this.height - 2 * MARGIN) / this.span[1]];
    return Math.max(1e-9, Math.min(...fits)) * this.view.zoom;
  }

  #project([x, y]) {
    const s = this.scale;
    return [this.width / 2 + (x - this.view.x) * s, this.height / 2 - (y - this.view.y) * s];
  }

  #unproject([px, py]) {
    const s = this.scale;
    return [this.view.x + (px - this.width / 2) / s, this.view.y - (py - this.height / 2) / s];
  }

  #draw() {
    const ctx = this.canvas.getContext("2d");
    const ratio = devicePixelRatio || 1;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, this.width, this.height);
    if (!this.view || !this.width) return;
    const css = getComputedStyle(this.canvas);
    const ink = css.getPropertyValue("--ink");
    const paper = css.getPropertyValue("--field");
    const n = this.points.x.length;
    const size = this.#size();
    const origin = this.selected >= 0 ? [this.points.x[this.selected], this.points.y[this.selected]] : this.query;
    const shown = this.linked.filter((i) => this.#visible(i));
    const apart = new Set([...shown, this.selected]);

    const colours = new Map([...this.paths.keys()].map((e) => [e, css.getPropertyValue(markOf(e).color)]));
    const mark = (i, radius, alpha) => {
      const [x, y] = this.placeOf(i);
      if (x < -20 || y < -20 || x > this.width + 20 || y > this.height + 20) return;
      ctx.globalAlpha = alpha;
      ctx.fillStyle = colours.get(this.points.emotion[i]);
      ctx.setTransform(ratio * radius, 0, 0, ratio * radius, ratio * x, ratio * y);
      ctx.fill(this.paths.get(this.points.emotion[i]));
      ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    };
    for (let i = 0; i < n; i++) if (!apart.has(i) && this.#visible(i)) mark(i, size, origin ? 0.3 : 0.82);

    ctx.globalAlpha = 0.5;
    ctx.strokeStyle = ink;
    ctx.lineWidth = 1;
    for (const i of shown) line(ctx, this.#project(origin), this.placeOf(i));
    ctx.globalAlpha = 1;
    for (const i of shown) disc(ctx, this.placeOf(i), size + 2.2, paper); // all of them below all marks
    for (const i of shown.reverse()) mark(i, size + 1.2, 1); // the nearest on top
    if (this.selected >= 0) {
      disc(ctx, this.placeOf(this.selected), size + 7, paper, ink);
      mark(this.selected, size + 2, 1);
    }
    if (this.query) target(ctx, this.#project(this.query), ink, paper);
    ctx.globalAlpha = 1;
    if (this.hovered >= 0 && this.hovered !== this.selected) {
      disc(ctx, this.placeOf(this.hovered), size + 5, null, ink);
    }
  }

  #size() {
    const crowd = Math.sqrt((this.width * this.height) / (this.points.x.length + 1));
    return Math.min(7, Math.max(2.4, crowd / 5.5)) * Math.min(1.6, Math.sqrt(Math.max(1, this.view.zoom)));
  }

  #visible(i) {
    return !this.hidden.has(this.points.emotion[i]);
  }

  // --- moving

  #go(view, glide) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const from = this.view;
    this.goal = view;
    if (!glide || still || !from) {
      this.view = view;
      this.draw();
      return;
    }
    const began = performance.now();
    const step = (now) => {
      if (this.goal !== view) return; // another move has begun
      const t = Math.min(1, Math.max(0, (now - began) / GLIDE_MS));
      const eased = 1 - (1 - t) ** 3;
      const between = (a, b) => a + (b - a) * eased;
      this.view = {
        x: between(from.x, view.x),
        y: between(from.y, view.y),
        zoom: from.zoom * (view.zoom / from.zoom) ** eased,
      };
      this.#draw();
      if (t < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  #reveal(point) {
    const [x, y] = this.#project(point);
    const inside = x > 12 && y > 12 && x < this.width - 12 && y < this.height - 12;
    if (!inside) this.#go({ ...this.view, x: point[0], y: point[1] }, true);
  }

  // --- pointer and keys

  #listen() {
    const at = (event) => [event.offsetX, event.offsetY];
    let grabbed = null;
    let moved = false;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button || !this.view) return;
      grabbed = { at: at(event), view: this.view };
      moved = false;
      if (event.pointerType === "mouse") this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.view) return;
      const [x, y] = at(event);
      if (grabbed && event.pointerType === "mouse") {
        const [dx, dy] = [x - grabbed.at[0], y - grabbed.at[1]];
        moved ||= Math.hypot(dx, dy) > 4;
        const s = this.scale;
        const { view } = grabbed;
        if (moved) this.#go({ ...view, x: view.x - dx / s, y: view.y + dy / s }, false);
        this.canvas.classList.toggle("dragged", moved);
      }
      this.#hover(moved && grabbed ? -1 : this.#near([x, y]));
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (grabbed && !moved) this.#choose(this.#near(at(event)));
      grabbed = null;
      this.canvas.classList.remove("dragged");
    });
    this.canvas.addEventListener("pointercancel", () => (grabbed = null));
    this.canvas.addEventListener("pointerleave", () => this.#hover(-1));
    this.canvas.addEventListener("dblclick", (event) => this.zoomBy(2, at(event)));
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY / (event.deltaMode ? 12 : 400)), at(event), false);
      },
      { passive: false },
    );
    this.canvas.addEventListener("keydown", (event) => {
      if (!this.view || event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        "+": () => this.zoomBy(1.6),
        "=": () => this.zoomBy(1.6),
        "-": () => this.zoomBy(1 / 1.6),
        0: () => this.fit(),
      }[event.key];
      const direction = DIRECTIONS[event.key];
      if (!act && !direction) return;
      event.preventDefault();
      if (act) act();
      else this.#choose(this.#towards(direction));
    });
  }

  #hover(index) {
    if (index === this.hovered) return;
    this.hovered = index;
    this.canvas.classList.toggle("pointed", index >= 0);
    this.draw();
    this.dispatchEvent(new CustomEvent("hover", { detail: index }));
  }

  #choose(index) {
    if (index < 0) return;
    this.dispatchEvent(new CustomEvent("select", { detail: index }));
  }

  #near([px, py]) {
    let best = -1;
    let least = REACH ** 2;
    for (let i = 0; i < this.points.x.length; i++) {
      if (!this.#visible(i)) continue;
      const [x, y] = this.placeOf(i);
      const distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  /** The neighbour that lies in a direction; where there is none there, any point that does. */
  #towards([dx, dy]) {
    const from = this.selected >= 0 ? [this.points.x[this.selected], this.points.y[this.selected]] : this.query;
    const all = this.points.x.map((_, i) => i);
    if (!from) return this.#nearest([this.view.x, this.view.y], all, Math.hypot);
    const cost = (x, y) => {
      const length = Math.hypot(x, y);
      const along = length ? (x * dx + y * dy) / length : 0;
      return along > 0.5 ? length / along ** 2 : Infinity; // within 60 degrees; straight ahead first
    };
    const neighbour = this.#nearest(from, this.linked, cost);
    return neighbour >= 0 ? neighbour : this.#nearest(from, all, cost);
  }

  #nearest([x, y], among, cost) {
    let best = -1;
    let least = Infinity;
    for (const i of among) {
      if (i === this.selected || !this.#visible(i)) continue;
      const [dx, dy] = [this.points.x[i] - x, this.points.y[i] - y];
      const value = cost(dx, dy);
      if (value < least) [best, least] = [i, value];
    }
    return best;
  }
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function line(ctx, [x0, y0], [x1, y1]) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

function disc(ctx, [x, y], radius, fill, stroke) {
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  if (fill) {
    ctx.fillStyle = fill;
    ctx.fill();
  }
  if (stroke) {
    ctx.strokeStyle = stroke;
    ctx.lineWidth = 1.75;
    ctx.stroke();
  }
}

/** A query is a sight, so that it is not taken for a recording of the run. */
function target(ctx, [x, y], ink, paper) {
  ctx.globalAlpha = 1;
  disc(ctx, [x, y], 10, paper, ink);
  disc(ctx, [x, y], 3, ink);
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    line(ctx, [x + 10 * dx, y + 10 * dy], [x + 17 * dx, y + 17 * dy]);
  }
}
