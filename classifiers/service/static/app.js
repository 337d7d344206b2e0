// Wires the page: what is selected, asked or typed, to the map and the panel.

import { glyph, nameOf } from "./marks.js";
import { audioUrl, element, Panel, short } from "./panel.js";
import { Player } from "./player.js";
import { Recording } from "./record.js";
import { Scatter } from "./scatter.js";

const $ = (id) => document.getElementById(id);
const FIND_AFTER = 120; // ms without a key

const player = new Player();
const scatter = new Scatter($("map"));
const panel = new Panel(player, (position) => go(position));
let run = { max_bytes: Infinity, max_seconds: 60 };
let indexOf = new Map(); // position -> index on the map
let asking = new AbortController(); // what is being looked up; a later one takes its place
let blobUrl = null; // of the last query

player.addEventListener("problem", (event) => say(`It cannot be played: ${event.detail}`, true));

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** JSON of an address. Throws an Error whose message is for the user. */
async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is hser-lookup serve still running?");
  }
  const body = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

/** Runs one lookup in place of the one before; what goes wrong is said. */
async function lookUp(work) {
  asking.abort();
  const mine = (asking = new AbortController());
  document.body.classList.add("busy");
  try {
    await work(mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) say(error.message, true);
  } finally {
    if (asking === mine) document.body.classList.remove("busy");
  }
}

const onMap = (neighbours) => neighbours.map((each) => indexOf.get(each.position)).filter((i) => i !== undefined);

const voteInWords = ({ winner, confidence }) =>
  winner === null ? "No vote." : `Vote: ${nameOf(winner)}, ${Math.round(100 * confidence)} %.`;

// --- a recording of the run

function go(position) {
  const index = indexOf.get(position) ?? -1;
  if (index < 0) scatter.showQuery(null, []);
  else scatter.select(index);
  return lookUp(async (signal) => {
    const row = await ask(`/api/rows/${position}`, { signal });
    if (index >= 0) scatter.select(index, onMap(row.neighbours));
    const facts = [nameOf(row.emotion), row.speaker && `speaker ${row.speaker}`, `${row.duration.toFixed(2)} s`];
    if (index < 0) facts.push("not in the sample on the map");
    panel.show(row, row.id, audioUrl(position), facts.filter(Boolean).join(" · "));
    say("");
    announce(`${row.id}, ${facts.filter(Boolean).join(", ")}. ${voteInWords(row)}`);
  });
}

/** For those who do not see the map: the panel shows the same. */
function announce(text) {
  const spoken = element("span", { className: "unseen", textContent: text });
  $("status").replaceChildren(spoken);
  $("status").classList.remove("error");
}

function leave() {
  asking.abort();
  document.body.classList.remove("busy");
  player.stop();
  panel.clear();
  scatter.showQuery(null, []);
  say("");
}

// --- a recording from outside

function query(blob, name) {
  if (blob.size > run.max_bytes) {
    say(`${name}: larger than ${Math.round(run.max_bytes / 2 ** 20)} MB`, true);
    return undefined;
  }
  player.stop();
  say(`Looking up ${name} …`);
  return lookUp(async (signal) => {
    // What it is, its bytes say: names and the types that are guessed from them lie.
    const headers = { "Content-Type": "application/octet-stream" };
    const found = await ask("/api/query", { method: "POST", body: blob, headers, signal });
    if (blobUrl) URL.revokeObjectURL(blobUrl);
    blobUrl = URL.createObjectURL(blob);
    scatter.showQuery([found.x, found.y], onMap(found.neighbours));
    panel.show(found, name, blobUrl, "your recording · not kept");
    announce(`${name}. ${voteInWords(found)} Nearest: ${found.neighbours[0]?.id ?? "none"}.`);
    $("result-title").focus({ preventScroll: true });
    $("result-title").scrollIntoView({ block: "nearest" });
  });
}

$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) query(file, file.name);
  $("file").value = ""; // the same file may be opened again
});

let dragDepth = 0; // entering a child comes before leaving its parent
const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const veil = (change) => {
  dragDepth = change === null ? 0 : dragDepth + change;
  $("veil").hidden = dragDepth <= 0;
};
addEventListener("dragenter", (event) => hasFile(event) && veil(1));
addEventListener("dragleave", (event) => hasFile(event) && veil(-1));
addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  veil(null);
  const { files } = event.dataTransfer;
  if (files.length > 1) say("One recording at a time, please: the first one is looked up.");
  if (files.length) query(files[0], files[0].name);
});

let recording = null;
$("record").addEventListener("click", async () => {
  if (recording) {
    recording.stop();
    return;
  }
  player.stop();
  try {
    recording = await Recording.start(run.max_seconds - 1, (level, seconds) => {
      $("level").style.setProperty("--level", level.toFixed(3));
      $("record-label").textContent = `Stop ${seconds.toFixed(1)} s`;
    });
  } catch (error) {
    say(error.message, true);
    return;
  }
  say("Recording. Press Stop to look it up.");
  $("record").setAttribute("aria-pressed", "true");
  const blob = await recording.done;
  recording = null;
  $("record").setAttribute("aria-pressed", "false");
  $("record-label").textContent = "Record";
  query(blob, "Microphone");
});

// --- the map

scatter.addEventListener("select", (event) => {
  const position = scatter.points.position[event.detail];
  if (event.detail === scatter.selected) player.toggle(audioUrl(position));
  else {
    player.stop();
    go(position);
  }
});
scatter.addEventListener("hover", ({ detail: i }) => {
  const tip = $("tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  const { id, emotion, speaker } = scatter.points;
  tip.replaceChildren(
    glyph(emotion[i]),
    element("strong", { textContent: short(id[i]) }),
    element("span", { textContent: [nameOf(emotion[i]), speaker[i] && `speaker ${speaker[i]}`].filter(Boolean).join(" · ") }),
  );
  const [x, y] = scatter.placeOf(i);
  const left = Math.min(Math.max(4, x + 14), scatter.width - tip.offsetWidth - 4);
  tip.style.left = `${left}px`;
  tip.style.top = `${y > 60 ? y - tip.offsetHeight - 12 : y + 16}px`;
});
$("zoom-in").addEventListener("click", () => scatter.zoomBy(1.6));
$("zoom-out").addEventListener("click", () => scatter.zoomBy(1 / 1.6));
$("zoom-fit").addEventListener("click", () => scatter.fit());
$("close").addEventListener("click", () => {
  leave();
  $("map").focus();
});
$("map").addEventListener("keydown", (event) => {
  if ((event.key === "Enter" || event.key === " ") && panel.url) {
    event.preventDefault();
    player.toggle(panel.url);
  }
});
addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    $("find").focus();
    $("find").select();
  } else if (event.key === "Escape" && !typing) leave();
});

function showLegend(points) {
  const counts = new Map();
  for (const emotion of points.emotion) counts.set(emotion, (counts.get(emotion) ?? 0) + 1);
  const ordered = [...counts].sort(([a, m], [b, n]) => (a === "") - (b === "") || n - m || a.localeCompare(b));
  $("legend").replaceChildren(
    ...ordered.map(([emotion, count]) => {
      const button = element(
        "button",
        { type: "button", ariaPressed: "true" },
        glyph(emotion),
        element("span", { textContent: nameOf(emotion) }),
        element("span", { className: "number", textContent: count.toLocaleString("en") }),
      );
      button.addEventListener("click", () => {
        const hide = !scatter.hidden.delete(emotion);
        if (hide) scatter.hidden.add(emotion);
        button.setAttribute("aria-pressed", String(!hide));
        scatter.draw();
      });
      return element("li", {}, button);
    }),
  );
}

// --- finding by id

let found = [];
let marked = -1;
let typed;
const showFound = (open) => {
  $("found").hidden = !open;
  $("find").setAttribute("aria-expanded", String(open));
};
const mark = (index) => {
  marked = index;
  [...$("found").children].forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
  const option = $("found").children[index];
  option?.scrollIntoView({ block: "nearest" });
  $("find").setAttribute("aria-activedescendant", option?.id ?? "");
};
const take = (row) => {
  showFound(false);
  $("find").value = "";
  $("map").focus({ preventScroll: true });
  player.stop();
  go(row.position);
};
async function find() {
  const text = $("find").value.trim();
  if (!text) {
    showFound(false);
    return;
  }
  let answer;
  try {
    answer = await ask(`/api/ids?contains=${encodeURIComponent(text)}`);
  } catch (error) {
    say(error.message, true);
    return;
  }
  if ($("find").value.trim() !== text || document.activeElement !== $("find")) return;
  found = answer.rows;
  const options = found.map((row, i) => {
    const facts = element("span", { className: "facts", textContent: row.speaker ? `speaker ${row.speaker}` : "" });
    const option = element("li", { id: `found-${i}`, role: "option" }, glyph(row.emotion), element("span", { className: "id", textContent: short(row.id), title: row.id }), facts);
    option.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      take(row);
    });
    return option;
  });
  const more = answer.num_rows - found.length;
  if (more > 0) options.push(element("li", { className: "none", textContent: `and ${more.toLocaleString("en")} more` }));
  if (!found.length) options.push(element("li", { className: "none", textContent: "No recording has this in its id." }));
  $("found").replaceChildren(...options);
  mark(found.length ? 0 : -1);
  showFound(true);
}
$("find").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(find, FIND_AFTER);
});
$("find").addEventListener("blur", () => showFound(false));
$("find").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && found.length) {
    event.preventDefault();
    mark((marked + step + found.length) % found.length);
  } else if (event.key === "Enter" && !$("found").hidden && found[marked]) take(found[marked]);
  else if (event.key === "Escape") {
    if ($("found").hidden) $("map").focus();
    showFound(false);
  }
});

// --- begin

async function begin() {
  run = await ask("/api/run");
  document.title = `${run.name} · hser lookup`;
  $("run-name").textContent = run.name;
  const hours = run.hours < 1 ? `${(60 * run.hours).toFixed(0)} min` : `${run.hours.toFixed(1)} h`;
  $("run-facts").textContent =
    `${run.num_rows.toLocaleString("en")} recordings · ${hours} · ${run.model} · layer ${run.layer}, ${run.pooling} · ${run.index}`;
  $("limits").textContent = `Up to ${Math.round(run.max_seconds / 60)} min, ${Math.round(run.max_bytes / 2 ** 20)} MB.`;
  const points = await ask("/api/map");
  points.emotion ??= points.id.map(() => "");
  points.speaker ??= points.id.map(() => "");
  indexOf = new Map(points.position.map((position, i) => [position, i]));
  $("waiting").hidden = true;
  showLegend(points);
  scatter.setPoints(points);
  const shown = points.id.length;
  const sample = shown < points.num_rows ? ` · a sample of ${shown.toLocaleString("en")}` : "";
  $("map-note").textContent = `${points.projection.toUpperCase()}${sample}`;
}

begin().catch((error) => {
  $("waiting").textContent = error.message;
  say(error.message, true);
});
