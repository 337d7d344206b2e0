// What was found: the recording, the vote, the neighbours.

import { glyph, markOf, nameOf } from "./marks.js";
import { showWave } from "./player.js";

const $ = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent" });
const SHOWN_ABOVE = new Set(["emotion", "speaker"]); // in the line below the title

const LONGEST = 21; // characters of an id that fit
const HEAD = 5; // of them before what is left out: ids of a corpus differ at their ends

export function short(id) {
  return id.length <= LONGEST ? id : `${id.slice(0, HEAD)}…${id.slice(HEAD + 1 - LONGEST)}`;
}

export const audioUrl = (position) => `/api/audio/${position}`;

export class Panel {
  /** `onGo(position)`: a neighbour was chosen. */
  constructor(player, onGo) {
    this.player = player;
    this.onGo = onGo;
    this.shown = new AbortController();
    this.url = null; // of the recording that is shown
  }

  clear() {
    this.shown.abort();
    this.url = null;
    $("result").hidden = true;
    $("empty").hidden = false;
  }

  /** `found`: what the server says of a row or a query; `url`: where its audio is. */
  show(found, title, url, facts) {
    this.shown.abort();
    this.shown = new AbortController();
    const { signal } = this.shown;
    this.url = url;
    $("empty").hidden = true;
    $("result").hidden = false;
    $("result-title").textContent = short(title);
    $("result-title").title = title;
    $("result-mark").replaceChildren(found.emotion === undefined ? sight() : glyph(found.emotion));
    $("result-facts").textContent = facts;
    const play = element("button", { type: "button", id: "play", className: "play" });
    $("play").replaceWith(play);
    this.player.bind(play, url, title, signal);
    showWave(this.player, $("wave"), $("clock"), url, found.duration ?? 0, signal);
    this.#labels(found.labels ?? {});
    this.#vote(found);
    $("neighbours").replaceChildren(...found.neighbours.map((each) => this.#neighbour(each, signal)));
  }

  #labels(labels) {
    const pairs = Object.entries(labels).filter(([name, value]) => value && !SHOWN_ABOVE.has(name));
    $("labels").hidden = !pairs.length;
    $("labels").replaceChildren(
      ...pairs.map(([name, value]) =>
        element("div", {}, element("dt", { textContent: name.replaceAll("_", " ") }), element("dd", { textContent: value })),
      ),
    );
  }

  #vote({ vote, margin, neighbours }) {
    $("margin").textContent = vote.length ? `margin ${percent.format(margin)}` : "";
    const bars = vote.map(({ emotion, share }) => {
      const bar = element("span", { className: "bar-fill" });
      bar.style.width = `${100 * share}%`;
      bar.style.background = `var(${markOf(emotion).color})`;
      return element(
        "li",
        {},
        glyph(emotion),
        element("span", { className: "name", textContent: nameOf(emotion) }),
        element("span", { className: "track", ariaHidden: "true" }, bar),
        element("span", { className: "number", textContent: percent.format(share) }),
      );
    });
    const none = neighbours.length ? "No neighbour has an emotion." : "There are no neighbours.";
    $("vote").replaceChildren(...(bars.length ? bars : [element("li", { className: "none", textContent: none })]));
  }

  #neighbour(each, signal) {
    const play = element("button", { type: "button", className: "play small" });
    this.player.bind(play, audioUrl(each.position), each.id, signal);
    const facts = [nameOf(each.emotion), each.speaker && `speaker ${each.speaker}`, `${each.duration.toFixed(1)} s`];
    const go = element(
      "button",
      { type: "button", className: "go" },
      glyph(each.emotion),
      element("span", { className: "id", textContent: short(each.id), title: each.id }),
      element("span", { className: "facts", textContent: facts.filter(Boolean).join(" · ") }),
      element("span", { className: "number", textContent: each.similarity.toFixed(4) }),
    );
    go.addEventListener("click", () => this.onGo(each.position), { signal });
    return element("li", {}, play, go);
  }
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function sight() {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", "0 0 16 16");
  made.classList.add("glyph", "sight");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M8 0v4M8 12v4M0 8h4M12 8h4M12 8a4 4 0 1 1-8 0a4 4 0 1 1 8 0z");
  made.append(path);
  return made;
}
