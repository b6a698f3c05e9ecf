/** 1234.56 as "1,235", 12.34 as "12.3": no more digits than a chart can show. */
export function count (value) {
  return value.toLocaleString('en', { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 })
}

export function rate (value) {
  return `${count(value)}/s`
}

export function duration (ms) {
  return ms < 1_000 ? `${count(ms)} ms` : `${count(ms / 1_000)} s`
}

/** The end of an axis: the least round number that is not less. */
export function ceiling (value) {
  const power = 10 ** Math.floor(Math.log10(value))
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map(step => step * power).find(step => step >= value * 0.999)
}
