(function () {
  "use strict";
  var bar = document.getElementById("filters");
  if (bar) {
    var samples = Array.prototype.slice.call(bar.parentNode.querySelectorAll("article.sample"));
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
  densepath.wireAll(document);
})();
