(function () {
  "use strict";
  var samples = Array.prototype.slice.call(document.querySelectorAll("article.sample"));
  var bar = document.getElementById("filters");
  if (bar && samples.length) {
    var text = document.getElementById("filter-text");
    var category = document.getElementById("filter-category");
    var differs = document.getElementById("filter-differs");
    var count = document.getElementById("filter-count");
    var apply = function () {
      var words = text.value.toLowerCase();
      var shown = 0;
      samples.forEach(function (sample) {
        var keep = (!words || sample.textContent.toLowerCase().indexOf(words) >= 0) &&
          (!category || !category.value || sample.dataset.category === category.value) &&
          (!differs.checked || sample.dataset.differs === "yes");
        sample.hidden = !keep;
        if (keep) { shown += 1; }
      });
      count.textContent = shown + " of " + samples.length + " shown";
    };
    bar.hidden = false;
    text.addEventListener("input", apply);
    differs.addEventListener("change", apply);
    if (category) { category.addEventListener("change", apply); }
    apply();
  }
  // Tokens: point, tap, or focus a completion and use the arrow keys; the line at the foot of the window says what is known.
  var line = document.getElementById("token");
  var current = null;
  document.querySelectorAll(".completion").forEach(function (box) {
    var heat = box.querySelector(".dp-heat");
    if (!heat || !line) { return; }
    var tokens = heat.children;
    var at = -1;
    var show = function (index) {
      if (current) { current.classList.remove("on"); }
      at = index;
      current = tokens[at];
      current.classList.add("on");
      line.textContent = current.title.split("\n").join("   ");
      line.hidden = false;
    };
    heat.tabIndex = 0;
    heat.addEventListener("keydown", function (event) {
      var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || !tokens.length) { return; }
      event.preventDefault();
      show(Math.max(0, Math.min(tokens.length - 1, at + step)));
    });
    ["mouseover", "click"].forEach(function (name) {
      heat.addEventListener(name, function (event) {
        var token = event.target.closest("b");
        var index = Array.prototype.indexOf.call(tokens, token);
        if (index >= 0) { show(index); }
      });
    });
  });
})();
