/** The values in the text format of Prometheus, by series as `name{label="value"}` with the labels in their order. */
export function valuesIn (text: string): Record<string, number> {
  const lines = text.split('\n').filter(line => line !== '' && !line.startsWith('#'))
  return Object.fromEntries(lines.map(line => {
    const at = line.lastIndexOf(' ')
    return [line.slice(0, at), Number(line.slice(at + 1))]
  }))
}

/** The values of one family, by the values of its labels. */
export function family (text: string, name: string): Record<string, number> {
  const found = Object.entries(valuesIn(text)).filter(([series]) => series === name || series.startsWith(`${name}{`))
  return Object.fromEntries(found.map(([series, value]) => [[...series.matchAll(/"([^"]*)"/g)].map(([, label]) => label).join(' '), value]))
}
