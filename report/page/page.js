"use strict";
// The responses behind a number. Everything from the records goes in as text, never as markup.
(() => {
  const dialog = document.getElementById("responses");
  const cards = document.getElementById("cards");
  const seedChoice = document.getElementById("seed");
  const filterChoice = document.getElementById("filter");
  const count = document.getElementById("count");
  let packets = [];

  const element = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined && text !== null) made.textContent = text;
    // What people and systems wrote stands in its own direction.
    if (tag === "p") made.dir = "auto";
    return made;
  };

  const unpack = async (key) => {
    const script = [...document.querySelectorAll("script[data-packet]")].find((one) => one.dataset.packet === key);
    if (!script) return null;
    const bytes = Uint8Array.from(atob(script.textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  // A response is [response, gate, label, probability, rating, reason, explanation, status].
  const score = (response) =>
    response && response[7] === "rated" ? response[4] * response[1] : null;

  const answer = (name, system, response) => {
    const box = element("div", "answer");
    const head = element("h4", "", name);
    box.append(head);
    if (!response) {
      const reason = system.status === "done" ? "not answered" : system.status + (system.message ? ": " + system.message : "");
      box.append(element("p", "lost", reason));
      return box;
    }
    const [text, gate, label, probability, rating, reason, explanation, status] = response;
    const number = score(response);
    head.append(element("span", number === null ? "score lost" : "score", number === null ? status : "score " + number));
    box.append(text === null ? element("p", "lost", "no response") : element("p", "", text));
    const verdict = element("p", "verdict");
    const identified = (label || "") + (probability === null || probability === undefined ? "" : " " + probability.toFixed(2));
    if (gate !== null) verdict.append(element("span", gate ? "" : "stopped", "gate " + gate), " (" + identified.trim() + ")");
    verdict.append(rating === null ? (gate !== null ? ", " : "") + "unrated" : ", rating " + rating);
    if (reason) verdict.append(": " + reason);
    box.append(verdict);
    if (explanation) box.append(element("p", "verdict", explanation));
    return box;
  };

  const systems = () =>
    packets.flatMap((packet) => packet.systems).filter((system) => system.seed === null || String(system.seed) === seedChoice.value || seedChoice.value === "");

  const wanted = (responses) => {
    const there = responses.filter(Boolean);
    if (filterChoice.value === "gated") return there.some((one) => one[1] === 0);
    if (filterChoice.value === "lost") return responses.some((one) => score(one) === null);
    if (filterChoice.value === "differ") return new Set(there.map(score)).size > 1;
    return true;
  };

  const show = () => {
    const shown = systems();
    const prompts = Object.assign({}, ...packets.map((packet) => packet.prompts));
    const order = [...new Set(packets.flatMap((packet) => packet.order))];
    const made = order
      .filter((id) => wanted(shown.map((system) => system.responses[id])))
      .map((id) => {
        const card = element("article", "card");
        card.append(element("h3", "", "prompt " + id), element("p", "prompt", prompts[id].prompt));
        if (prompts[id].reference) card.append(element("p", "reference", "reference: " + prompts[id].reference));
        const answers = element("div", "answers");
        for (const system of shown) answers.append(answer(system.recipes.join(" = "), system, system.responses[id]));
        card.append(answers);
        return card;
      });
    count.textContent = made.length + " of " + order.length + " prompts";
    cards.replaceChildren(...made);
    cards.scrollTop = 0;
  };

  const open = async (button) => {
    const { language, title } = button.dataset;
    const { base, method } = button.closest("tr").dataset;
    const name = button.closest("table").tHead.rows[0].cells[button.closest("td").cellIndex].firstChild.textContent;
    document.getElementById("responses-title").textContent = title + ", " + name;
    const keys = [...new Set([base + "||" + language, base + "|" + method + "|" + language])];
    try {
      packets = (await Promise.all(keys.map(unpack))).filter(Boolean);
    } catch (error) {
      packets = [];
      cards.replaceChildren(element("p", "lost", "This browser cannot unpack the responses: " + error.message));
    }
    const seeds = [...new Set(packets.flatMap((packet) => packet.systems.map((system) => system.seed)))].filter((seed) => seed !== null);
    seedChoice.replaceChildren(...seeds.map((seed) => element("option", "", String(seed))));
    seedChoice.parentElement.hidden = seeds.length < 2;
    filterChoice.value = "all";
    if (packets.length) show();
    dialog.showModal();
  };

  const same = (one, other, names) => names.every((name) => one[name] === other[name]);

  // Where a figure's mark or a finding stands in the table of totals: its number is opened there, or its row shown.
  const openSource = (source) => {
    const rows = [...document.querySelectorAll(".grid tr[data-recipe]")];
    const row = rows.find((one) => same(one.dataset, source, ["base", "method", "recipe"]));
    if (!row) return;
    const button = source.language && [...row.querySelectorAll("button")].find((one) => one.dataset.language === source.language);
    if (button && !button.disabled) { open(button); return; }
    row.closest("details").open = true;
    row.scrollIntoView({ block: "center" });
    row.classList.add("shown");
    setTimeout(() => row.classList.remove("shown"), 2500);
  };

  const buttons = document.querySelectorAll(".grid button");
  if (!document.querySelector("script[data-packet]")) buttons.forEach((button) => { button.disabled = true; });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".grid button");
    if (button && !button.disabled) open(button);
    const source = event.target.closest(".target, .opener");
    if (source) openSource(source.dataset);
    if (event.target === dialog) dialog.close();
  });
  document.getElementById("close").addEventListener("click", () => dialog.close());
  seedChoice.addEventListener("change", show);
  filterChoice.addEventListener("change", show);
  // Paper cannot be opened; what would fill it with hundreds of rows stays closed.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(.long)")];
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
})();
