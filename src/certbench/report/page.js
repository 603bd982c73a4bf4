// Sort the cross tables by a column. Everything can be read without this.
for (const table of document.querySelectorAll("table.cross")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  for (const head of table.querySelectorAll("th[data-column]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const next = before === "descending" ? "ascending" : before === "ascending" ? null : "descending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      const column = Number(head.dataset.column);
      const sign = next === "ascending" ? 1 : -1;
      const rank = (row) => {
        const value = row.cells[column].dataset.sort;
        return value === undefined ? Infinity : sign * Number(value);
      };
      const rows = next ? [...original].sort((a, b) => rank(a) - rank(b)) : original;
      if (next) head.setAttribute("aria-sort", next);
      body.append(...rows);
    });
  }
}
