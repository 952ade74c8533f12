// Shows the fused frame of every rig; the messages of a rig's socket are those of its own page.
"use strict";

const SILENT_MS = 3000;

class Rig {
  constructor(element) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.state = element.querySelector(".state");
    this.newest = null;
    this.drawing = false;
    this.shownAt = 0;
    this.connect();
  }

  connect() {
    const path = `${encodeURIComponent(this.element.dataset.rig)}/ws`;
    const socket = new WebSocket(new URL(path + location.search, location.href.replace(/^http/, "ws")));
    socket.binaryType = "arraybuffer";
    let ended = "";
    socket.onmessage = (event) => {
      if (typeof event.data === "string") { // the last message of a stream
        ended = `ended: ${JSON.parse(event.data).ended}`;
        return;
      }
      this.newest = event.data;
      this.draw();
    };
    socket.onclose = () => {
      this.over(ended || "disconnected");
      setTimeout(() => this.connect(), 1000);
    };
  }

  async draw() {
    if (this.drawing) return; // the newest message waits; older ones are skipped
    this.drawing = true;
    while (this.newest) {
      const message = this.newest;
      this.newest = null;
      const length = new DataView(message).getUint32(0, true);
      const header = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length)));
      if (!header.images.fused) continue;
      const bytes = new Uint8Array(message, 4 + length, header.images.fused);
      const image = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
      if (this.canvas.width !== image.width || this.canvas.height !== image.height) {
        this.canvas.width = image.width;
        this.canvas.height = image.height;
      }
      this.canvas.getContext("2d").drawImage(image, 0, 0);
      image.close();
      this.shownAt = Date.now();
      const rate = header.figures.rate_hz;
      this.element.classList.remove("over");
      this.element.classList.toggle("marked", header.marks.length > 0);
      this.state.textContent = header.marks.join(", ") || (rate ? `${rate.toFixed(1)} frames per second` : "live");
    }
    this.drawing = false;
  }

  over(reason) {
    this.element.classList.add("over");
    this.state.textContent = reason;
  }

  checkAge() {
    if (this.shownAt && Date.now() - this.shownAt > SILENT_MS) this.over("no new picture");
  }
}

const rigs = [...document.querySelectorAll(".rig")].map((element) => new Rig(element));
setInterval(() => rigs.forEach((rig) => rig.checkAge()), 500);
