// A shape and a colour for each emotion. The shape alone tells them apart; colours are in base.css.

// Paths around 0,0 of about equal area, for canvas and SVG alike.
const SHAPES = {
  circle: "M1,0A1,1 0 1 1 -1,0A1,1 0 1 1 1,0Z",
  up: "M0,-1.2L1.12,.78L-1.12,.78Z",
  down: "M0,1.2L1.12,-.78L-1.12,-.78Z",
  square: "M-.88,-.88H.88V.88H-.88Z",
  diamond: "M0,-1.28L1.1,0L0,1.28L-1.1,0Z",
  cross: "M-1.1,-.55L-.55,-1.1L0,-.55L.55,-1.1L1.1,-.55L.55,0L1.1,.55L.55,1.1L0,.55L-.55,1.1L-1.1,.55L-.55,0Z",
  star: "M0,-1.3L.35,-.45L1.24,-.4L.55,.16L.77,1.04L0,.55L-.77,1.04L-.55,.16L-1.24,-.4L-.35,-.45Z",
  ring: "M1.1,0A1.1,1.1 0 1 1 -1.1,0A1.1,1.1 0 1 1 1.1,0ZM.5,0A.5,.5 0 1 0 -.5,0A.5,.5 0 1 0 .5,0Z",
  bar: "M-1.25,-.55H1.25V.55H-1.25Z",
  hexagon: "M1.1,0L.55,.95L-.55,.95L-1.1,0L-.55,-.95L.55,-.95Z",
  dot: "M.6,0A.6,.6 0 1 1 -.6,0A.6,.6 0 1 1 .6,0Z",
};

// The common set of emotions (extractor.types.EMOTIONS); "" is one that is not known.
const MARKS = {
  anger: "up", happiness: "circle", sadness: "down", neutral: "square", fear: "diamond",
  disgust: "cross", surprise: "star", calm: "ring", boredom: "bar", other: "hexagon", "": "dot",
};
const NAMES = Object.keys(MARKS);

/** `{shape, color}` of an emotion; color is the name of a CSS variable. Labels of a corpus's own are given
 * marks in the order in which they are first asked for. */
const given = new Map();
export function markOf(emotion) {
  const name = emotion ?? "";
  if (name in MARKS) return { shape: MARKS[name], color: `--e-${name || "unknown"}` };
  if (!given.has(name)) given.set(name, NAMES[given.size % (NAMES.length - 1)]);
  return markOf(given.get(name));
}

export function nameOf(emotion) {
  return emotion || "not known";
}

export const pathOf = (emotion) => new Path2D(SHAPES[markOf(emotion).shape]);

/** The mark as an SVG element, for lists. */
export function glyph(emotion) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "-1.5 -1.5 3 3");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("glyph");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const { shape, color } = markOf(emotion);
  path.setAttribute("d", SHAPES[shape]);
  path.style.fill = `var(${color})`;
  svg.append(path);
  return svg;
}
