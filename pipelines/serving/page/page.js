"use strict";
// Names of files and folders are only ever set as text, never as HTML: folders are made by anybody.

const at = id => document.getElementById(id);
const ALL = "\u0000all"; // the choice that asks every model; no index has this name
let indexes = [];
let asked = 0; // the newest search; answers of older ones are not shown

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (parts[0] === 0) parts.shift();
  return parts.map((part, place) => (place ? String(part).padStart(2, "0") : part)).join(":");
}

function address(kind, index, video) {
  return `/${kind}/${encodeURIComponent(index)}/${video.split("/").map(encodeURIComponent).join("/")}`;
}

function say(words, isWrong = false) {
  at("status").textContent = words;
  at("status").classList.toggle("wrong", isWrong);
}

async function request(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  if (response.status === 204) return null;
  const content = await response.json();
  if (!response.ok) {
    const detail = content.detail;
    throw new Error(typeof detail === "string" ? detail : detail.map(one => one.msg).join("; "));
  }
  return content;
}

function card(index, answer) {
  const when = `${clock(answer.start)} – ${clock(answer.end)}`;
  const picture = element("img", {
    src: `${address("thumbnail", index, answer.video)}?time=${answer.best}`, alt: "", loading: "lazy",
  });
  const play = element("button", { className: "play", type: "button" }, picture, element("span", {}, when));
  play.setAttribute("aria-label", `Play ${answer.video} from ${clock(answer.start)}`);
  play.addEventListener("click", () => open(index, answer));

  const more = element("button", { className: "more", type: "button" }, "more like this");
  more.addEventListener("click", () => search({ video: answer.video, start: answer.best }, index));

  const name = element("span", { className: "name", title: answer.video }, answer.video);
  const score = element("span", { className: "score", title: "how well it matches" }, answer.score.toFixed(3));
  return element("li", {}, play, element("div", { className: "words" }, name, score, more));
}

function open(index, answer) {
  const video = at("video");
  video.src = `${address("video", index, answer.video)}#t=${answer.start},${answer.end}`;
  at("playing").textContent = `${answer.video}, ${clock(answer.start)} – ${clock(answer.end)}`;
  at("player").showModal();
  video.play().catch(() => {}); // a browser may want a click, or not know the format: its controls say so
}

function close() {
  at("video").pause();
  at("video").removeAttribute("src");
  at("video").load();
  at("player").close();
}

function chosen() {
  const value = at("index").value;
  return value === ALL ? indexes.map(index => index.name) : [value];
}

function filters() {
  const body = { top: 24, by_video: at("by-video").checked };
  for (const key of ["folder", "after", "before"]) if (at(key).value) body[key] = at(key).value;
  return body;
}

async function search(like = null, index = null) {
  const text = at("text").value.trim();
  if (!like && !text) return say("Say what to look for.");
  const number = ++asked;
  say("Searching …");
  const names = index ? [index] : chosen();
  const began = performance.now();
  try {
    const what = like ? { like } : { text };
    const responses = await Promise.all(
      names.map(name => request("/search", { ...filters(), ...what, index: name })));
    if (number !== asked) return;
    show(responses, Math.round(performance.now() - began));
  } catch (error) {
    if (number === asked) say(error.message, true);
  }
}

function show(responses, milliseconds) {
  const sections = responses.map(response => {
    const cards = response.answers[0].map(answer => card(response.index, answer));
    const described = indexes.find(index => index.name === response.index);
    const title = element("h2", {}, `${response.index}: ${described.method} on ${described.model}`);
    return element("section", {}, ...(responses.length > 1 ? [title] : []), element("ol", {}, ...cards));
  });
  at("results").replaceChildren(...sections);
  const count = responses.reduce((sum, response) => sum + response.answers[0].length, 0);
  say(count ? `${count} moments, ${milliseconds} ms` : "Nothing: no video meets the filters.");
}

function fillFolders() {
  const names = new Set(indexes.filter(index => chosen().includes(index.name)).flatMap(index => index.folders));
  const options = [...names].filter(name => name).sort().map(name => element("option", { value: name }, name));
  at("folder").replaceChildren(element("option", { value: "" }, "all folders"), ...options);
}

function step(by) {
  const buttons = [...document.querySelectorAll(".play")];
  const here = buttons.indexOf(document.activeElement.closest("li")?.querySelector(".play"));
  buttons[Math.min(Math.max(here + by, 0), buttons.length - 1)]?.focus();
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("player").open) return;
  if (/^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  const keys = {
    "/": () => at("text").focus(),
    j: () => step(1),
    k: () => step(-1),
    m: () => document.activeElement.closest("li")?.querySelector(".more").click(),
  };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
});
at("search").addEventListener("submit", event => { event.preventDefault(); search(); });
at("index").addEventListener("change", () => { fillFolders(); if (at("text").value.trim()) search(); });
for (const id of ["folder", "after", "before", "by-video"])
  at(id).addEventListener("change", () => { if (at("text").value.trim()) search(); });
at("close").addEventListener("click", close);
at("player").addEventListener("cancel", close);

async function begin() {
  if (location.hash.length > 1) {
    await request("/login", { token: decodeURIComponent(location.hash.slice(1)) });
    history.replaceState(null, "", "/");
  }
  indexes = await request("/indexes");
  const options = indexes.map(index => element("option", { value: index.name }, `${index.name} (${index.method})`));
  if (indexes.length > 1) options.push(element("option", { value: ALL }, "all, side by side"));
  at("index").replaceChildren(...options);
  at("index-label").hidden = indexes.length < 2;
  fillFolders();
  const videos = indexes.reduce((sum, index) => sum + index.videos, 0);
  const failed = indexes.reduce((sum, index) => sum + index.failed, 0);
  say(`${videos.toLocaleString("en")} videos${failed ? `; ${failed} could not be read` : ""}`);
}
begin().catch(error => say(error.message, true));
