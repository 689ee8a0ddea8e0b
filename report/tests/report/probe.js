// Opens a number, a figure's mark and a finding, and writes what it saw at the end of the page.
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));

const seen = {};
const query = (selector) => document.querySelector(selector);
const count = (selector) => document.querySelectorAll(selector).length;

const settled = async () => {
  for (let turn = 0; turn < 40 && !query("dialog[open] .card"); turn++) await new Promise((done) => setTimeout(done, 50));
};

const opened = async (name, element) => {
  query("dialog").close();
  query("#cards").replaceChildren();
  element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  await settled();
  seen[name] = count("dialog[open] .card");
  seen[name + "-answers"] = count("dialog[open] .card:first-child .answer");
  seen[name + "-gate"] = query("#cards").textContent.includes("gate ");
};

addEventListener("load", async () => {
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.panels = count(".panel svg");
  const panels = [...document.querySelectorAll("#figures figure:first-of-type .panel")];
  seen.columns = new Set(panels.map((panel) => panel.getBoundingClientRect().left)).size;
  await opened("number", query('.grid td.complete button[data-language="bn"]'));
  seen.bengali = query("#cards").textContent.includes("মাকড়সার");
  seen.explained = query("#cards").textContent.includes("[[");
  seen.direction = query("#cards .prompt").dir;
  await opened("mark", query('.target[data-language="zh"]'));
  seen.chinese = query("#cards").textContent.includes("蜘蛛");
  await opened("finding", query(".opener"));
  seen.errors = errors.length;
  const text = "PROBE " + Object.entries(seen).map(([name, value]) => name + "=" + value).join(" ") + " END";
  document.body.append(text, ...errors);
  parent.postMessage(text, "*");
});
