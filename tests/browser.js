// What is wrong on a page, in words: each check returns what it finds, an empty list where all is well.
({
  formulas() {
    const bad = formula => {
      const box = formula.getBoundingClientRect();
      const empty = box.width < 2 || box.height < 5;
      return formula.querySelector('merror') || !formula.matches('math, :has(math)') || empty;
    };
    return [...document.querySelectorAll('math, .formula')].filter(bad).map(f => f.outerHTML.slice(0, 200));
  },

  pictures() {
    const bad = image => {
      const box = image.getBoundingClientRect();
      return !image.naturalWidth || !image.naturalHeight || box.width < 20 || box.height < 20;
    };
    return [...document.images].filter(bad).map(image => image.alt + ' ' + image.src.slice(0, 80));
  },

  width(limit) {
    const page = document.scrollingElement;
    if (page.scrollWidth <= limit) return [];
    const wide = [...document.querySelectorAll('body *')].filter(
      element => element.getBoundingClientRect().right > limit + 1);
    return wide.map(element => element.outerHTML.slice(0, 200)).concat([page.scrollWidth]);
  },

  print() {
    const bad = element => {
      if (!element.checkVisibility({contentVisibilityAuto: true}))
        return element.closest('details:not(.table)');  // long tables are files
      const box = element.matches('html') || getComputedStyle(element).overflowX != 'visible';
      const outside = element.getBoundingClientRect().right > innerWidth + 1;
      return outside || box && element.scrollWidth > element.clientWidth + 1;
    };
    return [...document.querySelectorAll('html, body *')].filter(bad).map(e => e.outerHTML.slice(0, 200));
  },

  structure() {
    const all = selector => [...document.querySelectorAll(selector)];
    const levels = all('h1, h2, h3, h4, h5, h6').map(heading => +heading.tagName[1]);
    const skips = levels.flatMap((level, i) =>
      level > (levels[i - 1] || 0) + 1 ? [`h${level} after h${levels[i - 1] || 0}`] : []);
    const isRepeated = (element, i, others) => others.findIndex(other => other.id == element.id) < i;
    return [
      ...all('img').filter(i => !i.alt.trim()).map(i => 'no alternative text: ' + i.src.slice(0, 80)),
      ...all('table').filter(table => !table.querySelector('th[scope]'))
        .map(table => 'no header cells: ' + table.textContent.slice(0, 80)),
      ...skips,
      ...(levels.filter(level => level == 1).length == 1 ? [] : ['not one h1']),
      ...(document.documentElement.lang ? [] : ['no language']),
      ...(document.title.trim() ? [] : ['no title']),
      ...(document.querySelector('main') ? [] : ['no main part']),
      ...all('a[href], summary').filter(a => !a.textContent.trim()).map(a => 'nameless: ' + a.outerHTML),
      ...all('[id]').filter(isRepeated).map(element => 'repeated id: ' + element.id),
    ];
  },

  contrast() {
    const rgba = color => {
      const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
      return [r, g, b, a];
    };
    const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
    const paper = element => {
      const color = element ? rgba(getComputedStyle(element).backgroundColor) : [255, 255, 255, 1];
      return color[3] == 1 ? color : over(color, paper(element.parentElement));
    };
    // WCAG 2's relative luminance
    const linear = c => c <= 10.31 ? c / 3294.6 : ((c / 255 + .055) / 1.055) ** 2.4;
    const luminance = color => [.2126, .7152, .0722].reduce((sum, w, i) => sum + w * linear(color[i]), 0);
    const hasText = element => element.checkVisibility()
      && [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim());
    const pale = [...document.querySelectorAll('body, body *')].filter(hasText).flatMap(element => {
      const under = paper(element);
      const ink = over(rgba(getComputedStyle(element).color), under);
      const [bright, dim] = [luminance(ink), luminance(under)].sort((x, y) => y - x);
      const ratio = (bright + .05) / (dim + .05);
      return ratio < 4.5 ? [ratio.toFixed(2) + ': ' + element.outerHTML.slice(0, 120)] : [];
    });
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    const ground = luminance(paper(document.body));
    const right = dark ? ground < .05 : ground > .8;
    return right ? pale : [...pale, 'the ground is ' + (dark ? 'not dark' : 'not light')];
  },

  focus() {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    const outlined = style.outlineStyle != 'none' && parseFloat(style.outlineWidth) >= 1;
    const inside = box.left >= 0 && box.top >= 0 && box.width > 5 && box.right <= innerWidth;
    return element.matches('a, summary, [tabindex]') && outlined && inside
      ? [] : [element.outerHTML.slice(0, 200)];
  },
})
