// The rater's page: replies as they grow, keys, drafts, and forms that are sent again until they arrive. Every form carries
// what makes a second sending the same act, so sending again is safe. Without this file the page works, but does not stream.
"use strict";

const byId = (id) => document.getElementById(id);
const problem = byId("problem");

function say(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

if (sessionStorage.getItem("said")) {
  say(sessionStorage.getItem("said"));
  sessionStorage.removeItem("said");
}

function wait(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// Forms -----------------------------------------------------------------------------------------------------------------

let sending = false;

async function send(form, submitter) {
  if (sending) return; // A double click.
  sending = true;
  const body = new URLSearchParams(new FormData(form, submitter));
  document.body.classList.add("sending");
  let pause = 500;
  try {
    for (;;) {
      let answer = null;
      try {
        answer = await fetch(form.action, {
          method: "POST",
          body,
          headers: { Accept: "application/json" },
          signal: AbortSignal.timeout(20000),
        });
      } catch {
        answer = null; // The network or the server is away.
      }
      if (answer && answer.ok) {
        const told = await answer.json();
        if (form.dataset.draft) localStorage.removeItem("draft-" + form.dataset.draft);
        leave(told.go);
        return;
      }
      if (answer && answer.status === 409) {
        // Somebody went on in another tab: this page is of before. It is shown as it is now, with what was said.
        const told = await answer.json().catch(() => null);
        sessionStorage.setItem("said", told ? told.error.message : "");
        location.reload();
        return;
      }
      if (answer && answer.status < 500) {
        const told = await answer.json().catch(() => null);
        say(told ? told.error.message : "The server refused this (" + answer.status + ").");
        return;
      }
      const told = answer ? await answer.json().catch(() => null) : null;
      say((told ? told.error.message : "No connection to the server.") + " Trying again; nothing is lost.");
      await wait(pause);
      pause = Math.min(2 * pause, 8000);
    }
  } finally {
    sending = false;
    document.body.classList.remove("sending");
  }
}

function leave(address) {
  if (new URL(address, location.href).href === location.href) location.reload();
  else location.assign(address);
}

for (const form of document.querySelectorAll("form[data-send]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, event.submitter);
  });
}

// Drafts ----------------------------------------------------------------------------------------------------------------

for (const form of document.querySelectorAll("form[data-draft]")) {
  const text = form.querySelector("textarea");
  const name = "draft-" + form.dataset.draft;
  const keep = () => localStorage.setItem(name, text.value);
  // Somebody may have begun to type before this script was there.
  if (text.value) keep();
  else text.value = localStorage.getItem(name) || "";
  text.addEventListener("input", keep);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

// The pair --------------------------------------------------------------------------------------------------------------

const pair = document.querySelector(".pair");
let readableSince = null;

function readable(alike) {
  readableSince = performance.now();
  byId("status").textContent = alike ? "Both replies are the same." : "Read both replies, then choose.";
  if (alike) {
    // There is nothing to choose: one click goes on.
    for (const shown of byId("choice").querySelectorAll(".scale, .ends, #choose")) shown.hidden = true;
    byId("none").textContent = "They are the same";
  }
  byId("choice").querySelector("fieldset").disabled = false;
  const edit = byId("edit");
  if (edit) edit.hidden = false;
}

async function showWhole() {
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      const answer = await fetch("/pairs/" + pair.dataset.pair + "/replies", { headers: { Accept: "application/json" } });
      if (answer.ok) {
        const told = await answer.json();
        for (const side of ["a", "b"]) {
          const text = byId("reply-" + side).querySelector(".text");
          text.classList.remove("growing");
          text.innerHTML = told.html[side]; // Sanitised by the server; the page's policy runs no inline script.
        }
        if (byId("originals")) byId("originals").textContent = JSON.stringify(told.text);
        readable(told.alike);
        return;
      }
      if (answer.status < 500) return location.reload();
    } catch {
      // Tried again.
    }
    await wait(pause);
  }
}

function stream() {
  const source = new EventSource("/pairs/" + pair.dataset.pair + "/stream");
  const complete = new Set();
  // A connection that was lost is made again and tells everything from the beginning.
  source.onopen = () => {
    say("");
    complete.clear();
    for (const side of ["a", "b"]) byId("reply-" + side).querySelector(".text").textContent = "";
  };
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    if (event.error) {
      source.close();
      say(event.error.message);
      if (event.error.code === "being_written") {
        // A person writes one of the replies. Looked after now and then, for whoever stays on the page.
        setTimeout(stream, 20000);
        return;
      }
      const again = document.createElement("button");
      again.textContent = "Try again";
      again.addEventListener("click", () => location.reload());
      problem.append(" ", again);
      return;
    }
    const reply = byId("reply-" + event.side);
    const text = reply.querySelector(".text");
    if (event.restart) text.textContent = "";
    if (event.delta) text.append(event.delta);
    if (event.complete) {
      reply.setAttribute("aria-busy", "false");
      complete.add(event.side);
      if (complete.size === 2) {
        source.close();
        showWhole();
      }
    }
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 2000);
  };
}

if (pair) {
  if (pair.dataset.complete === "yes") readable(pair.dataset.alike === "yes");
  else stream();

  byId("choice").addEventListener("submit", () => {
    if (readableSince !== null) byId("choice").elements.duration_ms.value = Math.round(performance.now() - readableSince);
  }, { capture: true });

  const steps = ["a4", "a3", "a2", "a1", "b1", "b2", "b3", "b4"];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("textarea, summary, a, button")) return;
    if (byId("choice").querySelector("fieldset").disabled) return;
    if (byId("choose").hidden) {
      if (event.key === "0" || event.key === "Enter") {
        event.preventDefault();
        byId("none").click();
      }
    } else if (event.key >= "1" && event.key <= "8") {
      const step = byId("choice-" + steps[event.key - 1]);
      step.checked = true;
      step.focus();
    } else if (event.key === "0") {
      byId("none").click();
    } else if (event.key === "Enter") {
      event.preventDefault();
      byId("choice").requestSubmit(byId("choose"));
    }
  });

  const edit = byId("edit");
  if (edit) {
    for (const side of edit.querySelectorAll("input[name=side]")) {
      side.addEventListener("change", () => {
        byId("edited").value = JSON.parse(byId("originals").textContent)[side.value];
        byId("edited").focus();
      });
    }
  }
}

// A page out of the browser's own cache may show a pair that was compared since.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
