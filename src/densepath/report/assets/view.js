(function () {
  "use strict";
  var live = document.querySelector(".view").dataset.live === "yes";
  var byId = function (id) { return document.getElementById(id); };
  var controls = byId("controls"), list = byId("rows"), count = byId("count"), result = byId("result");

  function number(id) { return byId(id).value === "" ? null : Number(byId(id).value); }

  function tell(id, message) {
    byId(id).textContent = message;
    byId(id).hidden = !message;
  }

  function onControls(listen) {
    controls.hidden = false;
    controls.addEventListener("submit", function (event) { event.preventDefault(); });
    ["input", "change"].forEach(function (name) { controls.addEventListener(name, listen); });
  }

  // A file: its rows are all in the page, and are put in order and hidden here.
  function arrange() {
    var rows = Array.prototype.slice.call(list.children);
    var key = byId("sort").value, sign = byId("direction").value === "down" ? -1 : 1;
    var words = byId("words").value.trim().toLowerCase(), low = number("low"), high = number("high"), kept = 0;
    rows.sort(function (a, b) { return sign * (a.dataset[key] - b.dataset[key]) || a.dataset.row - b.dataset.row; });
    rows.forEach(function (row) {
      var value = Number(row.dataset[key]);
      row.hidden = (low !== null && value < low) || (high !== null && value > high) ||
        (words !== "" && row.textContent.toLowerCase().indexOf(words) < 0);
      kept += row.hidden ? 0 : 1;
      list.appendChild(row);
    });
    densepath.clear();
    count.textContent = kept + " of " + rows.length + " rows shown";
  }

  densepath.wireAll(document);
  if (!live) {
    if (controls) { onControls(arrange); }
    return;
  }

  // A server: it is asked for everything, and what it answers is escaped already.
  function ask(path, body) {
    var headers = {}, key = sessionStorage.getItem("densepath-key");
    if (key) { headers.Authorization = "Bearer " + key; }
    if (body) { headers["Content-Type"] = "application/json"; }
    return fetch("v1/view" + path, { method: body ? "POST" : "GET", headers: headers, body: body && JSON.stringify(body) })
      .then(function (answer) {
        return answer.json().then(function (value) {
          if (answer.ok) { return value; }
          if (answer.status === 401) { askForKey(key ? "That is not the key." : ""); }
          throw new Error(value.error.message);
        });
      }, function () { throw new Error("The server does not answer. Is densepath view still running?"); });
  }

  function askForKey(message) {
    sessionStorage.removeItem("densepath-key");
    byId("key-form").hidden = false;
    byId("try").hidden = byId("rows-section").hidden = true;
    tell("key-error", message);
    byId("key").focus();
  }

  byId("key-form").addEventListener("submit", function (event) {
    event.preventDefault();
    sessionStorage.setItem("densepath-key", byId("key").value);
    begin();
  });

  function put(place, html) {
    place.innerHTML = html;
    densepath.clear();
    densepath.wireAll(place);
  }

  function present(answer) {
    put(result, answer.html);
    URL.revokeObjectURL(byId("save").href);
    byId("save").href = URL.createObjectURL(new Blob([answer.page], { type: "text/html" }));
    byId("keep").hidden = false;
    result.scrollIntoView({ block: "start" });
  }

  function begin() {
    ask("").then(function (info) {
      byId("key-form").hidden = true;
      tell("trouble", "");
      byId("title").textContent = info.title;
      document.title = info.title + " · densepath view";
      byId("facts").textContent = info.file ? info.file.path + ", " + info.file.rows + " rows" : "";
      if (info.models) {
        [["sft", info.models.sft], ["ref", info.models.ref], ["dense-reward", info.models.dense_rewards]].forEach(function (pair) {
          byId(pair[0]).replaceChildren.apply(byId(pair[0]), pair[1].map(function (name) { return new Option(name, name); }));
        });
        ["prompt", "answer-a", "answer-b"].forEach(function (id) { byId(id).maxLength = info.models.max_characters; });
        byId("chat").checked = info.models.chat;
        byId("chat-label").hidden = !info.models.has_chat_template;
        byId("try").hidden = false;
        needsReference();
      }
      if (info.file) {
        byId("rows-section").hidden = false;
        turnTo([0]);
      }
    }).catch(function (error) { if (byId("key-form").hidden) { tell("trouble", error.message); } });
  }

  // Scoring what is typed in.
  var form = byId("text-form");

  function needsReference() { byId("ref").disabled = byId("dense-reward").value !== "baseline_relative"; }

  byId("dense-reward").addEventListener("change", needsReference);
  form.addEventListener("keydown", function (event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
  });
  form.addEventListener("submit", function (event) {
    event.preventDefault();
    if (byId("score").disabled) { return; }
    var completions = [byId("answer-a").value];
    if (byId("answer-b").value) { completions.push(byId("answer-b").value); }
    byId("score").disabled = true;
    byId("working").textContent = "Scoring…";
    tell("error", "");
    ask("/score", {
      prompt: byId("prompt").value, completions: completions, chat: byId("chat").checked,
      page: true, sft: byId("sft").value, ref: byId("ref").disabled ? null : byId("ref").value, dense_reward: byId("dense-reward").value
    }).then(function (answer) {
      present(answer);
    }).catch(function (error) { tell("error", error.message); }).then(function () {
      byId("score").disabled = false;
      byId("working").textContent = "";
    });
  });

  // Paging through a file.
  var starts = [0], next = null, asked = 0, waiting = null;
  var picked = { a: null, b: null };

  function turnTo(pages, scroll) {
    var query = new URLSearchParams({ sort: byId("sort").value, descending: byId("direction").value === "down", start: pages[pages.length - 1] });
    [["words", byId("words").value.trim()], ["low", byId("low").value], ["high", byId("high").value]].forEach(function (pair) {
      if (pair[1] !== "") { query.set(pair[0], pair[1]); }
    });
    var mine = asked += 1;
    count.textContent = "Reading…";
    ask("/rows?" + query).then(function (answer) {
      if (mine !== asked) { return; } // a later question is under way
      starts = pages;
      next = answer.next;
      put(list, answer.html);
      showPicked();
      count.textContent = answer.note;
      byId("previous").disabled = starts.length < 2;
      byId("next").disabled = next === null;
      if (scroll) { byId("rows-section").scrollIntoView({ block: "start" }); }
    }).catch(function (error) { if (mine === asked) { count.textContent = error.message; } });
  }

  onControls(function () {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(function () { turnTo([0]); }, 250);
  });
  byId("next").addEventListener("click", function () { turnTo(starts.concat([next]), true); });
  byId("previous").addEventListener("click", function () { turnTo(starts.slice(0, -1), true); });

  // Two rows to compare: one is A, the other B.
  function showPicked() {
    list.querySelectorAll("[data-pick]").forEach(function (button) {
      button.setAttribute("aria-pressed", picked[button.dataset.pick] === button.dataset.number);
    });
  }

  list.addEventListener("click", function (event) {
    var button = event.target.closest("[data-pick]");
    if (!button) { return; }
    var side = button.dataset.pick;
    picked[side] = picked[side] === button.dataset.number ? null : button.dataset.number;
    showPicked();
    if (picked.a === null || picked.b === null) { return; }
    ask("/compare?" + new URLSearchParams({ a: picked.a, b: picked.b, page: true })).then(function (answer) {
      present(answer);
    }).catch(function (error) { count.textContent = error.message; });
  });

  begin();
})();
