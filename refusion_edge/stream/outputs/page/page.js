// Draws the messages of /ws: a length, a JSON header, and the JPEG images that this view requested.
"use strict";

const IMAGES = { fused: ["fused"], side: ["ir", "vis", "fused"], blend: ["ir", "vis"], edges: ["ir", "vis"] };
const CAPTIONS = { fused: "fused", side: "fused", blend: "infrared and visible, blended", edges: "visible, with infrared edges in orange" };
const EDGE_TIMES_MEAN = 3; // gradients above this multiple of their mean are edges, whatever the contrast
const SILENT_MS = 3000;
const byId = (id) => document.getElementById(id);
const scratch = document.createElement("canvas");
let view = "fused";
let socket = null;
let newest = null;
let drawing = false;
let over = ""; // why the picture is not live
let pictureAt = 0;

function connect() {
  const address = new URL("ws" + location.search, location.href.replace(/^http/, "ws"));
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { showState(over || "waiting for frames", over ? "lost" : ""); ask(); };
  socket.onmessage = (event) => { newest = event.data; pictureAt = Date.now(); showOver(""); draw(); };
  socket.onclose = (event) => {
    showState(event.reason || "disconnected, reconnecting", "lost");
    showOver(event.reason || "disconnected");
    setTimeout(connect, 1000);
  };
}

// A picture that is not live any more is dimmed, with the reason.
function showOver(reason) {
  over = reason;
  byId("images").classList.toggle("over", over !== "");
  byId("over").textContent = over && pictureAt ? `not live: ${over}` : "";
  byId("over").hidden = byId("over").textContent === "";
}

function checkAge() {
  if (pictureAt && !over && Date.now() - pictureAt > SILENT_MS) showOver("no new picture");
}

function ask() {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ images: IMAGES[view] }));
}

async function draw() {
  if (drawing) return; // the newest message waits; older ones are skipped
  drawing = true;
  while (newest) {
    const message = newest;
    newest = null;
    const length = new DataView(message).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length)));
    const images = {};
    let at = 4 + length;
    for (const name of Object.keys(header.images).sort((a, b) => order(a) - order(b))) {
      const bytes = new Uint8Array(message, at, header.images[name]);
      images[name] = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
      at += header.images[name];
    }
    paint(header, images);
    showHeader(header);
    Object.values(images).forEach((image) => image.close());
  }
  drawing = false;
}

function order(name) { return ["fused", "ir", "vis"].indexOf(name); }

function sized(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  return canvas.getContext("2d", { willReadFrequently: canvas === scratch });
}

function paint(header, images) {
  if (view === "fused" || view === "side") {
    for (const name of IMAGES[view]) {
      const canvas = byId(name);
      if (images[name]) sized(canvas, images[name]).drawImage(images[name], 0, 0);
      else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height); // never show the last image of a lost camera as live
    }
    return;
  }
  const ground = images.vis || images.ir;
  if (!ground) return;
  const context = sized(byId("fused"), ground);
  context.globalAlpha = 1;
  context.drawImage(view === "blend" ? images.ir || ground : ground, 0, 0, ground.width, ground.height);
  if (view === "blend" && images.vis) {
    context.globalAlpha = byId("slider").value / 100;
    context.drawImage(images.vis, 0, 0);
    context.globalAlpha = 1;
  }
  if (view === "edges" && images.ir) drawEdges(context, images.ir);
}

function drawEdges(context, image) {
  const source = sized(scratch, image);
  source.drawImage(image, 0, 0);
  const { width, height } = image;
  const pixels = source.getImageData(0, 0, width, height).data;
  const target = context.getImageData(0, 0, width, height);
  const level = (x, y) => pixels[4 * (y * width + x)];
  const strength = new Float32Array(width * height);
  let sum = 0;
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const dx = level(x + 1, y - 1) + 2 * level(x + 1, y) + level(x + 1, y + 1) - level(x - 1, y - 1) - 2 * level(x - 1, y) - level(x - 1, y + 1);
      const dy = level(x - 1, y + 1) + 2 * level(x, y + 1) + level(x + 1, y + 1) - level(x - 1, y - 1) - 2 * level(x, y - 1) - level(x + 1, y - 1);
      strength[y * width + x] = Math.hypot(dx, dy);
      sum += strength[y * width + x];
    }
  }
  const threshold = EDGE_TIMES_MEAN * sum / strength.length;
  strength.forEach((value, at) => { if (value > threshold) target.data.set([255, 140, 0, 255], 4 * at); });
  context.putImageData(target, 0, 0);
}

function showHeader(header) {
  const alone = header.mode !== "fused";
  showState(alone ? header.mode : "live", alone ? "alone" : "live");
  byId("marks").textContent = header.marks.join(", ");
  byId("marks").hidden = header.marks.length === 0;
  if (document.activeElement !== byId("polarity")) byId("polarity").value = header.polarity;
  const figures = header.figures;
  const number = (value, digits, unit) => (value === null || value === undefined ? "–" : value.toFixed(digits) + " " + unit);
  const rows = { frame: `${header.number} (${header.width}×${header.height})`, skew: number(header.skew_ms, 1, "ms") };
  if (figures.cameras) {
    rows["fused"] = number(figures.rate_hz, 1, "/s");
    rows["age p50, p99"] = `${number(figures.age.p50_ms, 0, "ms")}, ${number(figures.age.p99_ms, 0, "ms")}`;
    rows["network"] = number(figures.infer_ms, 1, "ms");
    rows["misregistration (p95)"] = number(figures.misregistration_px, 1, "px");
    if (figures.refined_px !== null) rows["refined by"] = number(figures.refined_px, 1, "px");
    rows["pairs not shown"] = figures.not_shown;
    for (const [side, camera] of Object.entries(figures.cameras)) {
      rows[side] = `${number(camera.rate_hz, 1, "/s")}, ${camera.dropped} dropped, ${camera.freezes} freezes` + (camera.state === "running" ? "" : `, ${camera.state}`);
    }
    rows["viewers"] = figures.viewers;
  }
  byId("figures").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    row.append(term, text);
    return row;
  }));
}

function showState(text, kind) {
  byId("state").textContent = text;
  byId("state").dataset.kind = kind;
}

function choose(name) {
  view = name;
  byId("images").dataset.view = name;
  byId("caption").textContent = CAPTIONS[name];
  byId("blend").hidden = name !== "blend";
  document.querySelectorAll("button[data-view]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === name));
  history.replaceState(null, "", location.pathname + location.search + "#" + name);
  ask();
}

document.querySelectorAll("button[data-view]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.view)));
document.addEventListener("keydown", (event) => {
  const name = ["fused", "side", "blend", "edges"][Number(event.key) - 1];
  if (name && event.target === document.body) choose(name);
});
byId("polarity").addEventListener("change", (event) => socket.send(JSON.stringify({ polarity: event.target.value })));
setInterval(checkAge, 500);
connect();
if (location.hash.slice(1) in IMAGES) choose(location.hash.slice(1));
