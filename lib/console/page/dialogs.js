import { $ } from './element.js'

/** Asks the user for a token; undefined if the user declines. */
export async function signIn (wasRefused) {
  const [dialog, input] = [$('token-dialog'), $('token')]
  input.value = ''
  dialog.returnValue = 'no'
  $('token-wrong').hidden = !wasRefused
  $('token-cancel').onclick = () => dialog.close('no')
  await new Promise(resolve => {
    dialog.onclose = resolve
    dialog.showModal()
  })
  // a header holds printable ASCII only; a token with other characters is refused as a wrong one
  return dialog.returnValue === 'no' ? undefined : input.value.trim().replace(/[^\x21-\x7e]/g, '?')
}

/** Asks the user whether to do something. */
export async function confirms ({ title, text, yes }) {
  const dialog = $('confirm-dialog')
  $('confirm-title').textContent = title
  $('confirm-text').textContent = text
  $('confirm-yes').textContent = yes
  dialog.returnValue = 'no'
  await new Promise(resolve => {
    dialog.onclose = resolve
    dialog.showModal()
  })
  return dialog.returnValue === 'yes'
}
