'use strict';
for (const table of document.querySelectorAll('table.sort')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(h => h.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const key = row => { const c = row.cells[column]; return c.dataset.v ?? c.textContent.trim(); };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)], [p, q] = [parseFloat(x), parseFloat(y)];
        if (isNaN(p) !== isNaN(q)) return isNaN(p) ? 1 : -1;
        return (up ? 1 : -1) * (isNaN(p) ? x.localeCompare(y) : p - q);
      };
      for (const body of table.tBodies) body.append(...[...body.rows].sort(order));
    });
  });
}
for (const tools of document.querySelectorAll('.tools')) {
  tools.hidden = false;
  const items = document.getElementById(tools.dataset.of).querySelectorAll('[data-item]');
  const count = tools.querySelector('output');
  const filter = () => {
    let shown = 0;
    for (const item of items) {
      const fits = [...tools.querySelectorAll('select')].every(s => !s.value || item.dataset[s.name] === s.value);
      const words = tools.querySelector('input'), text = words ? words.value.toLowerCase() : '';
      item.hidden = !(fits && item.textContent.toLowerCase().includes(text));
      shown += !item.hidden;
    }
    const set = [...tools.querySelectorAll('select, input')].some(control => control.value);
    document.getElementById(tools.dataset.of).querySelectorAll('.group').forEach((group, place) => {
      group.hidden = ![...group.querySelectorAll('[data-item]')].some(item => !item.hidden);
      group.open = set || place === 0;
    });
    if (count) count.textContent = shown + ' of ' + items.length;
  };
  tools.addEventListener('input', filter);
  filter();
}
let closed = [];
addEventListener('beforeprint', () => { closed = [...document.querySelectorAll('details:not([open])')]; closed.forEach(d => { d.open = true; }); });
addEventListener('afterprint', () => closed.forEach(d => { d.open = false; }));
