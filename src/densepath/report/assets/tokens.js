// Tokens: point, tap, or focus a completion and use the arrow keys; the line at the foot of the window says what is known.
var densepath = (function () {
  "use strict";
  var line = document.getElementById("token");
  var current = null;

  function clear() {
    document.querySelectorAll(".dp-heat .on, .dp-curve .on").forEach(function (item) { item.classList.remove("on"); });
    current = null;
    if (line) { line.hidden = true; }
  }

  // The drawn curve holds one point for the origin and one for each token.
  function points(figure) {
    return Array.prototype.map.call(figure.querySelectorAll(".dp-line"), function (path) {
      return path.getAttribute("d").slice(1).split(" ").map(Number);
    });
  }

  function wire(heat) {
    var pair = heat.classList.contains("dp-pair");
    var items = Array.prototype.slice.call(heat.querySelectorAll(pair ? ".dp-col" : "b"));
    var box = heat.closest(".dp-linked");
    var figure = box && box.querySelector(".dp-curve");
    var at = -1;
    if (!line || !items.length) { return; }

    function describe(item) {
      var tokens = item.matches("b") ? [item] : Array.prototype.slice.call(item.querySelectorAll("b"));
      return tokens.map(function (token) {
        var side = pair ? (token.parentNode === item.firstElementChild ? "A  " : "B  ") : "";
        return side + token.title.split("\n").join("   ");
      }).join("\n");
    }

    function show(index, scroll) {
      clear();
      at = index;
      current = items[at];
      current.classList.add("on");
      line.textContent = describe(current);
      line.hidden = false;
      if (scroll) { current.scrollIntoView({ block: "nearest" }); }
      if (!figure) { return; }
      var drawn = points(figure);
      figure.querySelectorAll(".dp-dot").forEach(function (dot, which) {
        dot.style.left = drawn[which][2 * (at + 1)] / 10 + "%";
        dot.style.top = drawn[which][2 * (at + 1) + 1] + "%";
        dot.classList.add("on");
      });
    }

    heat.tabIndex = 0;
    heat.addEventListener("focus", function () {
      if (heat.matches(":focus-visible") && items.indexOf(current) < 0) { show(Math.max(at, 0), true); }
    });
    heat.addEventListener("keydown", function (event) {
      var last = items.length - 1;
      var next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") { clear(); }
      if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) { return; }
      event.preventDefault();
      show(Math.max(0, Math.min(last, next)), true);
    });
    ["mouseover", "click"].forEach(function (name) {
      heat.addEventListener(name, function (event) {
        var index = items.indexOf(event.target.closest(pair ? ".dp-col" : "b"));
        if (index >= 0) { show(index, false); }
      });
    });
    if (figure) {
      figure.querySelector(".dp-plot").addEventListener("mousemove", function (event) {
        var area = event.currentTarget.getBoundingClientRect();
        var across = 1000 * (event.clientX - area.left) / area.width;
        var xs = points(figure)[0].filter(function (_, i) { return i % 2 === 0; });
        var best = 1;
        for (var i = 1; i < xs.length; i += 1) {
          if (Math.abs(xs[i] - across) < Math.abs(xs[best] - across)) { best = i; }
        }
        show(best - 1, false);
      });
    }
    if (box) {
      box.querySelectorAll(".dp-worst a").forEach(function (link) {
        link.addEventListener("click", function () {
          var run = document.getElementById(link.hash.slice(1));
          if (!run) { return; }
          // Afterwards: following the link takes the focus away.
          window.setTimeout(function () {
            heat.focus({ preventScroll: true });
            show(items.indexOf(run.querySelector("b")), false);
          });
        });
      });
    }
  }

  function wireAll(root) { root.querySelectorAll(".dp-heat:not(.dp-scale)").forEach(wire); }
  return { wireAll: wireAll, clear: clear };
})();
