/** The element of this id. */
export const $ = id => document.getElementById(id)

/** A new element. Children that are text stay text, whatever is in them. */
export function el (tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value)
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.filter(child => child !== undefined))
  return element
}

/** Lets a parent have these children and no others. Those that stay are not moved, and so keep the focus. */
export function arrange (parent, children) {
  const wanted = new Set(children)
  for (const child of Array.from(parent.children)) if (!wanted.has(child)) child.remove()
  let next = parent.firstElementChild
  for (const child of children) {
    if (child === next) next = next.nextElementSibling
    else parent.insertBefore(child, next)
  }
}

/** Shows a text, or hides its place where there is none. */
export function tell (element, text = '') {
  element.textContent = text
  element.hidden = text === ''
}

/** A function that draws soon, once for all that asked meanwhile. */
export function drawing (draw, pause = 100) {
  let asked = false
  return () => {
    if (asked) return
    asked = true
    setTimeout(() => requestAnimationFrame(() => {
      asked = false
      draw()
    }), pause)
  }
}

/** Data as a person reads it. */
export function readable (data) {
  if (data instanceof Uint8Array) return `${data.length} bytes`
  return typeof data === 'string' ? data : JSON.stringify(data)
}
