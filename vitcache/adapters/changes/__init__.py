"""How an attachment notices that its model changed."""
