// One recording plays at a time; whoever shows a button for it is told what it does now.

const PLAY = "M5 3.2v9.6L13 8z";
const PAUSE = "M4.5 3h2.6v10H4.5zM8.9 3h2.6v10H8.9z";
const STEP = 0.5; // seconds, of an arrow key
const BAR = 3; // px, of the waveform
const WAVE_RATE = 16000; // Hz: enough for a picture

export class Player extends EventTarget {
  // Events: "change", whatever changed; "problem", with a reason as detail.
  constructor() {
    super();
    this.url = null;
    this.audio = new Audio();
    for (const name of ["play", "pause", "ended", "timeupdate", "seeked", "loadedmetadata"]) {
      this.audio.addEventListener(name, () => this.#changed());
    }
    this.audio.addEventListener("error", () => this.#failed());
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  isPlaying(url) {
    return this.url === url && this.playing;
  }

  async toggle(url) {
    if (this.isPlaying(url)) this.audio.pause();
    else await this.#start(url);
  }

  async seek(url, seconds) {
    if (this.url !== url) await this.#start(url);
    this.audio.currentTime = Math.max(0, seconds);
  }

  timeOf(url) {
    return this.url === url ? this.audio.currentTime : 0;
  }

  stop() {
    this.audio.pause();
  }

  async #start(url) {
    if (this.url !== url) {
      this.url = url;
      this.audio.src = url;
    }
    try {
      await this.audio.play();
    } catch (error) {
      // Another recording was started meanwhile; a failure to load is an event of its own.
      if (error.name !== "AbortError" && error.name !== "NotSupportedError") this.#problem(error.message);
    }
    this.#changed();
  }

  async #failed() {
    let reason = "this browser cannot play it";
    if (this.url?.startsWith("/")) {
      const answer = await fetch(this.url).catch(() => null);
      if (!answer) reason = "the server does not answer";
      else if (!answer.ok) reason = (await answer.json()).error;
    }
    this.#problem(reason);
    this.#changed();
  }

  #problem(reason) {
    this.dispatchEvent(new CustomEvent("problem", { detail: reason }));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** Makes `button` play `url`; `name` is for those who do not see it. Ends with `signal`. */
  bind(button, url, name, signal) {
    const show = () => {
      const playing = this.isPlaying(url);
      button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${name}`);
      button.classList.toggle("playing", playing);
      button.querySelector("path").setAttribute("d", playing ? PAUSE : PLAY);
    };
    if (!button.firstChild) button.append(icon());
    button.addEventListener("click", () => this.toggle(url), { signal });
    this.addEventListener("change", show, { signal });
    show();
  }
}

function icon() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  return svg;
}

/** The waveform of `url` in a canvas that is a slider, and the time beside it. Ends with `signal`. */
export async function showWave(player, canvas, clock, url, duration, signal) {
  let peaks = [];
  const draw = () => {
    const now = player.timeOf(url);
    paint(canvas, peaks, duration ? now / duration : 0);
    clock.textContent = `${now.toFixed(1)} / ${duration.toFixed(1)} s`;
    canvas.setAttribute("aria-valuemax", duration.toFixed(1));
    canvas.setAttribute("aria-valuenow", now.toFixed(1));
    canvas.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${duration.toFixed(1)} seconds`);
  };
  draw();
  player.addEventListener("change", draw, { signal });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw, { signal });
  canvas.addEventListener(
    "pointerdown",
    (event) => player.seek(url, (event.offsetX / canvas.clientWidth) * duration),
    { signal },
  );
  canvas.addEventListener(
    "keydown",
    (event) => {
      const to = { ArrowLeft: -STEP, ArrowRight: STEP, Home: -Infinity }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      player.seek(url, Math.min(duration, player.timeOf(url) + to));
    },
    { signal },
  );
  let glide;
  const follow = () => {
    cancelAnimationFrame(glide);
    if (signal.aborted || !player.isPlaying(url)) return;
    draw();
    glide = requestAnimationFrame(follow);
  };
  player.addEventListener("change", follow, { signal });

  let samples;
  try {
    const answer = await fetch(url, { signal });
    if (!answer.ok) return;
    const decoded = await new OfflineAudioContext(1, 1, WAVE_RATE).decodeAudioData(await answer.arrayBuffer());
    samples = decoded.getChannelData(0);
    duration = decoded.duration;
  } catch {
    return; // it was left, or this browser cannot decode it: then there is no picture
  }
  if (signal.aborted) return;
  const resize = () => {
    peaks = peaksOf(samples, Math.max(1, Math.floor(canvas.clientWidth / BAR)));
    draw();
  };
  const observer = new ResizeObserver(resize);
  observer.observe(canvas);
  signal.addEventListener("abort", () => observer.disconnect());
}

function peaksOf(samples, count) {
  const peaks = new Array(count).fill(0);
  for (let i = 0; i < samples.length; i++) {
    const bar = Math.min(count - 1, Math.floor((i * count) / samples.length));
    peaks[bar] = Math.max(peaks[bar], Math.abs(samples[i]));
  }
  const largest = Math.max(...peaks) || 1;
  return peaks.map((peak) => peak / largest);
}

function paint(canvas, peaks, share) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  const css = getComputedStyle(canvas);
  const [played, rest] = [css.getPropertyValue("--accent"), css.getPropertyValue("--wave")];
  if (!peaks.length) {
    ctx.fillStyle = rest;
    ctx.fillRect(0, height / 2, width, 1);
  }
  peaks.forEach((peak, i) => {
    const tall = Math.max(1.5, peak * (height - 4));
    ctx.fillStyle = share && (i + 0.5) / peaks.length <= share ? played : rest;
    ctx.fillRect(i * BAR, (height - tall) / 2, BAR - 1, tall);
  });
  if (share) {
    ctx.fillStyle = played;
    ctx.fillRect(Math.min(width - 1.5, share * width), 0, 1.5, height);
  }
}
