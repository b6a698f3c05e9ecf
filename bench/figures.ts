/** The first cell of a table of figures. Tables with another first cell are not figures of candidates. */
export const FIGURES = 'µs, ms, bytes: less is better'

/** A row of a table of figures: what each candidate needs for the same work. */
export interface FigureRow {
  title: string
  unit: string
  figures: Figure[]
}

export interface Figure {
  candidate: string
  isOurs: boolean
  /** The cell as it is written: the value, then in parentheses the ratio to the reference. */
  text: string
  value: number
}

/** The rows of all tables of figures on a page in Markdown. Candidates without a value are left out. */
export function figuresOf (page: string): FigureRow[] {
  const tables = page.split(/\n\s*\n/).filter(block => block.startsWith(`| ${FIGURES} |`))
  return tables.flatMap(table => {
    const [[, ...candidates], , ...rows] = table.trim().split('\n').map(cellsOf) as [string[], string[], ...string[][]]
    return rows.map(([name, ...cells]) => figureRow(name!, candidates.flatMap((candidate, at) => figure(candidate, cells[at]!))))
  })
}

function cellsOf (line: string): string[] {
  return line.split('|').slice(1, -1).map(cell => cell.trim())
}

/** The unit is what follows the last colon. */
function figureRow (name: string, figures: Figure[]): FigureRow {
  const at = name.lastIndexOf(': ')
  return { title: name.slice(0, at), unit: name.slice(at + 2), figures }
}

/** Our column is the bold one. */
function figure (candidate: string, text: string): Figure[] {
  if (text === '') return []
  return [{ candidate: candidate.replaceAll(/[*`]/g, ''), isOurs: candidate.startsWith('**'), text, value: Number.parseFloat(text) }]
}
