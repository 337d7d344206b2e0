// The microphone. What it hears stays in the page until it is asked with.

// In order of preference; all of these the server decodes.
const TYPES = ["audio/webm;codecs=opus", "audio/ogg;codecs=opus", "audio/mp4"];
const REASONS = {
  NotAllowedError: "The microphone was not allowed. Allow it in the browser's address bar, then press Record again.",
  NotFoundError: "No microphone was found. Connect one, or open a file instead.",
  NotReadableError: "The microphone is in use by another program.",
};

/** Records until `stop()` or `seconds`; gives a Blob. `onLevel` is told the loudness, 0 to 1, and the time.
 * Throws an Error whose message is for the user. */
export class Recording {
  static async start(seconds, onLevel) {
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
      throw new Error(
        isSecureContext
          ? "This browser cannot record. Open a file instead."
          : "Browsers give the microphone to https or localhost only. Ask this page as localhost, or open a file.",
      );
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    return new Recording(stream, seconds, onLevel);
  }

  constructor(stream, seconds, onLevel) {
    this.stream = stream;
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    const chunks = [];
    this.recorder.addEventListener("dataavailable", (event) => chunks.push(event.data));
    this.done = new Promise((resolve) => {
      this.recorder.addEventListener("stop", () => {
        this.#release();
        resolve(new Blob(chunks, { type: this.recorder.mimeType }));
      });
    });
    // Unplugged: what was recorded until then is kept.
    stream.getAudioTracks()[0].addEventListener("ended", () => this.stop());
    this.recorder.start();
    this.limit = setTimeout(() => this.stop(), 1000 * seconds);
    this.#watch(onLevel);
  }

  stop() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
  }

  #watch(onLevel) {
    this.context = new AudioContext();
    const analyser = this.context.createAnalyser();
    this.context.createMediaStreamSource(this.stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const began = performance.now();
    const step = () => {
      if (this.recorder.state === "inactive") return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
      const decibels = 10 * Math.log10(power + 1e-10);
      onLevel(Math.min(1, Math.max(0, (decibels + 60) / 50)), (performance.now() - began) / 1000);
      requestAnimationFrame(step);
    };
    step();
  }

  #release() {
    clearTimeout(this.limit);
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}
