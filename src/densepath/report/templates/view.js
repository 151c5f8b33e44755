(function () {
  "use strict";
  var live = document.body.dataset.live === "yes";
  var byId = function (id) { return document.getElementById(id); };
  var controls = byId("controls"), list = byId("rows"), count = byId("count");
  densepath.wireAll(document);

  function number(id) { return byId(id).value === "" ? null : Number(byId(id).value); }

  // A file: its rows are all in the page, and are put in order and hidden here.
  function arrange() {
    var rows = Array.prototype.slice.call(list.children);
    var key = byId("sort").value, sign = byId("direction").value === "down" ? -1 : 1;
    var words = byId("text").value.trim().toLowerCase(), low = number("low"), high = number("high"), kept = 0;
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

  if (controls) {
    controls.hidden = false;
    controls.addEventListener("submit", function (event) { event.preventDefault(); });
    if (!live) { controls.addEventListener("input", arrange); return; }
  }
  if (!live) { return; }
})();
