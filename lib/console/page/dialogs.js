import { $ } from './element.js'

/** Asks the user for a token; undefined if the user declines. */
export async function signIn (wasRefused) {
  const [dialog, input] = [$('token-dialog'), $('token')]
  input.value = ''
  $('token-wrong').hidden = !wasRefused
  $('token-cancel').onclick = () => dialog.close('no')
  // a header holds printable ASCII only; a token with other characters is refused as a wrong one
  return await isAnswered(dialog) ? input.value.trim().replace(/[^\x21-\x7e]/g, '?') : undefined
}

/** Asks the user whether to do something. */
export async function confirms ({ title, text, yes }) {
  $('confirm-title').textContent = title
  $('confirm-text').textContent = text
  $('confirm-yes').textContent = yes
  return await isAnswered($('confirm-dialog'))
}

/** Opens a dialog; resolves with whether it was closed with its main button. */
async function isAnswered (dialog) {
  dialog.returnValue = ''
  await new Promise(resolve => {
    dialog.onclose = resolve
    dialog.showModal()
  })
  return dialog.returnValue === 'yes'
}
