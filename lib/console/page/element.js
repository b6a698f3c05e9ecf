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

/** Sets the children of a parent. Children that remain are not moved, so they keep the focus. */
export function setChildren (parent, children) {
  const wanted = new Set(children)
  for (const child of Array.from(parent.children)) if (!wanted.has(child)) child.remove()
  let next = parent.firstElementChild
  for (const child of children) {
    if (child === next) next = next.nextElementSibling
    else parent.insertBefore(child, next)
  }
}

/** Shows a text, or hides the element if there is none. */
export function showText (element, text = '') {
  element.textContent = text
  element.hidden = text === ''
}

/** Returns a function that draws in the next frame, once for several calls. */
export function batched (draw, pause = 100) {
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

/** Data as readable text. */
export function readable (data) {
  if (data instanceof Uint8Array) return `${data.length} bytes`
  return typeof data === 'string' ? data : JSON.stringify(data)
}

/** At most `length` characters of a text. */
export function clipped (text, length) {
  return text.length > length ? `${text.slice(0, length)}…` : text
}
